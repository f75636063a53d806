"""Events: a frozen record of each change that an operator may want to know about.

A listener is a plain function that takes one event. It is called on the event loop and must not block. No event holds a
secret. Acquires, releases and queries emit no event; ``stats()`` counts them.
"""

from .connections import (
    ConnectionLost,
    ConnectionOverdue,
    LeakSuspected,
    LeaseEnded,
    NotWritable,
    Replaced,
    ReplacementDelayed,
    ResetFailed,
)
from .emitter import Emitter
from .event import Event, Listener
from .fetches import (
    CredentialExpired,
    CredentialsRenewed,
    PairDegraded,
    Refreshed,
    RefreshFailed,
    RefreshRecovered,
    SteppedAside,
    SteppedBack,
)
from .logins import (
    AccountQuarantined,
    AccountRecovered,
    AllRefused,
    FellBack,
    LoginRefused,
    ServerRecovered,
    ServerUnavailable,
)

__all__ = [
    "AccountQuarantined",
    "AccountRecovered",
    "AllRefused",
    "ConnectionLost",
    "ConnectionOverdue",
    "CredentialExpired",
    "CredentialsRenewed",
    "Emitter",
    "Event",
    "FellBack",
    "LeakSuspected",
    "LeaseEnded",
    "Listener",
    "LoginRefused",
    "NotWritable",
    "PairDegraded",
    "RefreshFailed",
    "RefreshRecovered",
    "Refreshed",
    "Replaced",
    "ReplacementDelayed",
    "ResetFailed",
    "ServerRecovered",
    "ServerUnavailable",
    "SteppedAside",
    "SteppedBack",
]
