"""Every exception that aiopqr raises of its own, with one common base.

An error that asyncpg's users already catch stays what they catch: :class:`CredentialsRefused` is an
``asyncpg.InvalidPasswordError``, a closed pool an ``asyncpg.InterfaceError``, what ran out of time a ``TimeoutError``.
None of them ever shows a password.
"""

from __future__ import annotations

import asyncpg


class AiopqrError(Exception):
    """The base of all errors that are aiopqr's own."""


class ConfigurationError(AiopqrError, ValueError):
    """An option that cannot work. The text names the option and never shows a DSN or a secret."""


class InvalidSecret(AiopqrError, ValueError):
    """Credentials that cannot be used. The text names the key at fault and never shows its value."""


class MissingExtra(AiopqrError, ImportError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'aiopqr[{extra}]'")


class SourceError(AiopqrError):
    """The secret store could not be read. A source raises it (or a subclass) with a text that is safe to log."""


class SourceTimeout(SourceError, TimeoutError):
    """The secret store did not answer in time."""


class CredentialsRefused(AiopqrError, asyncpg.InvalidPasswordError):
    """Every credential of the pair was refused, and no newer ones came within the time given.

    ``refusals`` holds the server's error for each username that was refused. An ``asyncpg.InvalidPasswordError`` (SQLSTATE 28P01).
    """

    refusals: dict[str, BaseException]

    def __init__(self, message: str, refusals: dict[str, BaseException] | None = None) -> None:
        super().__init__(message)
        self.refusals = refusals or {}


class ConnectTimeout(AiopqrError, TimeoutError):
    """A connection could not be made within its ``timeout``; the last failure is the cause."""


class PoolError(AiopqrError):
    """The base of what goes wrong with the pool itself."""


class AcquireTimeout(PoolError, TimeoutError):
    """No connection became free in time. The text tells sizes, waiters, and the last connect failure, which is the cause."""


class TooManyWaiting(PoolError):
    """``max_waiting`` tasks are waiting for a connection already."""


class PoolClosing(PoolError, asyncpg.InterfaceError):
    """The pool is being closed, or is closed: no connection is given out any more."""


class RotationError(AiopqrError):
    """The base of what goes wrong in a rotation of passwords."""
