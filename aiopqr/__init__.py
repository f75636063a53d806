"""aiopqr: change the passwords of your Postgres accounts whenever you like; the services that use them never notice.

:func:`create_pool` makes an :class:`AlternatingPool`, an ``asyncpg.Pool`` whose connections use two accounts in turn.
"""

from typing import TYPE_CHECKING, Any

from ._connect import Connector
from ._pool import AlternatingPool, create_pool
from ._refresh import Refresher
from .credentials import Credential, CredentialPair, Endpoint, Parity, Secret
from .errors import (
    AcquireTimeout,
    AiopqrError,
    ConfigurationError,
    ConnectTimeout,
    CredentialsExpired,
    CredentialsRefused,
    InvalidSecret,
    MissingExtra,
    PoolClosing,
    PoolError,
    RotationError,
    SourceError,
    SourceTimeout,
    TooManyWaiting,
    UntrustedServer,
    WrongLoop,
)

if TYPE_CHECKING:
    from .rotation import Rotator

__version__ = "0.1.0"

__all__ = [
    "AcquireTimeout",
    "AiopqrError",
    "AlternatingPool",
    "ConfigurationError",
    "ConnectTimeout",
    "Connector",
    "Credential",
    "CredentialPair",
    "CredentialsExpired",
    "CredentialsRefused",
    "Endpoint",
    "InvalidSecret",
    "MissingExtra",
    "Parity",
    "PoolClosing",
    "PoolError",
    "Refresher",
    "RotationError",
    "Rotator",
    "Secret",
    "SourceError",
    "SourceTimeout",
    "TooManyWaiting",
    "UntrustedServer",
    "WrongLoop",
    "create_pool",
]


if not TYPE_CHECKING:  # with __getattr__, a type checker would accept misspelt names

    def __getattr__(name: str) -> Any:
        if name == "Rotator":  # imported on demand, since services do not need it
            from .rotation import Rotator

            return Rotator
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
