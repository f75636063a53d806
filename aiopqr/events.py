"""Events: a frozen record of each change that an operator may want to know about.

A listener is a plain function that takes one event. It is called on the event loop and must not block. No event holds a
secret. Acquires, releases and queries emit no event; ``stats()`` counts them.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .credentials import Parity

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

logger = logging.getLogger("aiopqr")

# What a verdict means, for whoever reads the log.
_REASONS = {
    "credential": "wrong password, or the account does not exist",
    "account": "the account may not connect",
    "account full": "the account's connection limit is reached",
}


def _times(failures: int) -> str:
    return "once" if failures == 1 else f"{failures} times in a row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base of all events. ``name`` is that of the pool, connector or refresher that it comes from.

    ``str(event)`` is the sentence that is logged.
    """

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRefused(Event):
    """The server refused an account. ``verdict`` is a :class:`~aiopqr.refusals.Verdict`'s text."""

    parity: Parity
    username: str
    verdict: str
    sqlstate: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.username} was refused again ({self._reason})"

    @property
    def _reason(self) -> str:
        reason = _REASONS.get(self.verdict, self.verdict)
        return f"{self.sqlstate}, {reason}" if self.sqlstate else reason


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountQuarantined(LoginRefused):
    """A refused account is set aside until a newer password comes, or until a probe is due, ``retry_in`` seconds on."""

    retry_in: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.username} was refused ({self._reason}); fetching new credentials, and not trying it "
            f"again for {self.retry_in:.0f} s unless they bring a new password"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecovered(Event):
    """An account that was set aside logs in again, ``after`` seconds later."""

    parity: Parity
    username: str
    after: float

    def __str__(self) -> str:
        return f"{self.name}: {self.username} logs in again, {self.after:.1f} s after it was refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack(Event):
    """A connect whose first account was refused went on with the other one."""

    refused: Parity
    parity: Parity
    username: str

    def __str__(self) -> str:
        return (
            f"{self.name}: connected as {self.username} ({self.parity}) because the {self.refused} account was refused"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AllRefused(Event):
    """Every account of the pair is refused: connects wait for newer credentials. ``pair_age`` is in seconds."""

    usernames: tuple[str, ...]
    pair_age: float

    def __str__(self) -> str:
        return (
            f"{self.name}: every account is refused ({', '.join(self.usernames)}); connects now wait for newer "
            f"credentials, the last of which were fetched {self.pair_age:.0f} s ago"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUnavailable(Event):
    """A connect met an outage for the first time since the last success; connects retry within their deadlines."""

    error: str

    def __str__(self) -> str:
        return f"{self.name}: the server is unavailable ({self.error}); connects wait and retry until their timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecovered(Event):
    """The server lets in, or refuses, again, ``after`` seconds of outage."""

    after: float

    def __str__(self) -> str:
        return f"{self.name}: the server answers again after {self.after:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed(Event):
    """A fetch succeeded and brought something new: ``changed`` accounts, or a pending password."""

    changed: tuple[Parity, ...]
    pending: Parity | None

    def __str__(self) -> str:
        what = [f"{parity} changed" for parity in self.changed]
        if self.pending:
            what.append(f"a pending password for {self.pending}")
        return f"{self.name}: fetched new credentials ({', '.join(what) or 'nothing to log in with changed'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsRenewed(Event):
    """A fetch brought the same credentials with a later expiry. The first of them expires in ``expires_in`` seconds."""

    expires_in: float | None

    def __str__(self) -> str:
        until = "no longer expire" if self.expires_in is None else f"expire in {self.expires_in:.0f} s"
        return f"{self.name}: the credentials were renewed, and {until}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialExpired(Event):
    """An account's password or lease expired ``ago`` seconds ago, and the source has nothing newer.

    It is not used for a login any more.
    """

    parity: Parity
    username: str
    ago: float

    def __str__(self) -> str:
        return (
            f"{self.name}: the credentials of {self.username} expired {self.ago:.0f} s ago, and make no login until "
            "the source brings newer ones: see why it does not renew them"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded(Event):
    """A connection was closed because its account's lease has ended, and no replacement could be had before.

    ``in_use``: whether somebody had it checked out.
    """

    username: str
    in_use: bool

    def __str__(self) -> str:
        state = "a connection in use" if self.in_use else "an idle connection"
        return (
            f"{self.name}: closed {state} of {self.username}, whose lease has ended before a replacement could be had"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshFailed(Event):
    """A fetch failed; the pair in use stays. The next comes in ``retry_in`` seconds.

    ``pair_age`` is how many seconds ago the pair was last fetched, or None if the very first fetch failed.
    """

    error: str
    failures: int
    retry_in: float
    pair_age: float | None

    def __str__(self) -> str:
        if self.pair_age is None:
            return f"{self.name}: the first credentials could not be fetched ({self.error})"
        return (
            f"{self.name}: fetching credentials failed {_times(self.failures)} ({self.error}); keeping those that were "
            f"fetched {self.pair_age:.0f} s ago, and trying again in {self.retry_in:.1f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshRecovered(Event):
    """A fetch succeeded after ``failures`` failures in a row, whether or not it brought anything new."""

    failures: int

    def __str__(self) -> str:
        return f"{self.name}: fetching credentials works again, after it failed {_times(self.failures)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedAside(Event):
    """The store announces a new password for an account, so new connections use the other one while it works.

    That ends when the store has promoted the password or given it up, and in ``ends_in`` seconds at the latest.
    """

    parity: Parity
    username: str
    ends_in: float

    def __str__(self) -> str:
        return (
            f"{self.name}: a new password for {self.username} is staged, so its password is about to change; new "
            f"connections use the other account until it has, for {self.ends_in:.0f} s at most"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedBack(Event):
    """New connections use both accounts again, ``after`` seconds.

    ``closed`` says that the store shows no staged password of that account any more. Otherwise the stage was open for
    too long: the rotation was probably interrupted, and ``aiopqr rotate`` finishes it.
    """

    parity: Parity
    username: str
    after: float
    closed: bool

    def __str__(self) -> str:
        why = (
            "the rotation is over"
            if self.closed
            else "the staged password has been open for too long; run `aiopqr rotate`, which finishes the rotation"
        )
        return f"{self.name}: new connections use {self.username} again after {self.after:.0f} s: {why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDegraded(Event):
    """The store names one account only: there is nothing to fall back to."""

    missing: Parity

    def __str__(self) -> str:
        return f"{self.name}: the secret has no {self.missing} account, so there is no other one to fall back to"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced(Event):
    """A connection was retired after ``age`` seconds, its replacement ready. ``why``: lifetime, superseded or drain."""

    parity: Parity
    age: float
    why: str

    def __str__(self) -> str:
        account = f"connection of the {self.parity} account"
        return f"{self.name}: replaced a {account} that was {self.age:.0f} s old ({self.why})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementDelayed(Event):
    """No replacement can be had, so connections serve on past their deadline, the oldest by ``overdue`` seconds."""

    error: str
    overdue: float
    retry_in: float

    def __str__(self) -> str:
        return (
            f"{self.name}: no replacement could be opened ({self.error}); connections stay in use past their lifetime, "
            f"the oldest by {self.overdue:.0f} s; trying again in {self.retry_in:.1f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetFailed(Event):
    """The server did not reset a session whose release nobody waited for, so the connection was closed."""

    error: str

    def __str__(self) -> str:
        return f"{self.name}: a session could not be reset ({self.error}); its connection was closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost(Event):
    """A connection was found dead. ``when``: idle, or being released."""

    when: str
    error: str

    def __str__(self) -> str:
        return f"{self.name}: a connection was lost while {self.when} ({self.error}); another one takes its place"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotWritable(Event):
    """A connection was closed because its server takes no writes any more; all others are being checked.

    ``server`` is the address that the connection was made to, or None. It is emitted at most once a second.
    """

    server: str | None

    def __str__(self) -> str:
        where = f"the server at {self.server}" if self.server else "the server of a connection"
        return f"{self.name}: {where} takes no writes any more; closing the connections that lead there"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOverdue(Event):
    """A connection is ``overdue`` seconds past its deadline: it is in use, or, if ``is_idle``, cannot be replaced.

    It is emitted once for each connection.
    """

    overdue: float
    is_idle: bool

    def __str__(self) -> str:
        why = "no replacement is ready" if self.is_idle else "it is in use"
        return f"{self.name}: a connection is {self.overdue:.0f} s past the end of its lifetime, because {why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakSuspected(Event):
    """A connection has been held for ``held`` seconds. ``stack`` is where it was acquired."""

    held: float
    stack: str

    def __str__(self) -> str:
        return f"{self.name}: a connection has been held for {self.held:.0f} s; it was acquired here:\n{self.stack}"


Listener = Callable[[Event], object]

# What goes to the log, and how loudly. The rest is for listeners.
_LEVELS: dict[type[Event], int] = {
    AccountQuarantined: logging.WARNING,
    AccountRecovered: logging.INFO,
    FellBack: logging.INFO,
    AllRefused: logging.ERROR,
    ServerUnavailable: logging.WARNING,
    ServerRecovered: logging.INFO,
    Refreshed: logging.INFO,
    CredentialExpired: logging.ERROR,
    LeaseEnded: logging.WARNING,
    RefreshFailed: logging.WARNING,
    RefreshRecovered: logging.INFO,
    PairDegraded: logging.WARNING,
    SteppedAside: logging.INFO,
    SteppedBack: logging.INFO,
    ReplacementDelayed: logging.WARNING,
    ResetFailed: logging.WARNING,
    ConnectionLost: logging.INFO,
    NotWritable: logging.WARNING,
    ConnectionOverdue: logging.INFO,
    LeakSuspected: logging.WARNING,
}


class Emitter:
    """Tells the log and the listeners of an event. A listener that raises is logged and harms nobody."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Call ``listener`` with each event from now on, on the event loop."""
        self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Call it no more. Raises ``ValueError`` if it was not added."""
        self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        """Tell the log and the listeners."""
        if level := _LEVELS.get(type(event)):
            try:
                logger.log(level, "%s", event, extra={"event": event})
            except Exception:  # a log handler that raises must not end what it reports on; logging does the same
                traceback.print_exc()
        self.tell(event)

    def tell(self, event: Event) -> None:
        """Tell the listeners, of what another emitter has logged."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # a CancelledError, say of a future that it looked at, cancels nobody here
                report("%s: listener %r failed on %s", event.name, listener, type(event).__name__)


def report(message: str, *args: object) -> None:
    """Log the exception that is being handled, with its stack."""
    try:
        logger.exception(message, *args)  # noqa: LOG004
    except Exception:  # a log handler that raises must not end what it reports on
        traceback.print_exc()


@contextmanager
def reporting(message: str, *args: object) -> Iterator[None]:
    """Log whatever is raised inside, and go on."""
    try:
        yield
    except Exception:
        report(message, *args)
