"""All exceptions that aiopqr defines, with one common base.

Many also derive from the class that users of asyncpg already catch: :class:`CredentialsRefused` from
``asyncpg.InvalidPasswordError``, :class:`PoolClosing` from ``asyncpg.InterfaceError``, and timeouts from
``TimeoutError``. None of them ever shows a password.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType, TracebackType
from typing import TypeVar

import asyncpg

_E = TypeVar("_E", bound=BaseException)


class AiopqrError(Exception):
    """The base of all exceptions that aiopqr defines."""


class ConfigurationError(AiopqrError, ValueError):
    """An option that cannot work. The text identifies the option, and never shows a DSN or a secret."""


class InvalidSecret(AiopqrError, ValueError):
    """Credentials that cannot be used. The text identifies the key at fault, and never shows its value."""


class MissingExtra(AiopqrError, ImportError):
    """An optional dependency is not installed. The text says how to install it."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'aiopqr[{extra}]'")


class SourceError(AiopqrError):
    """The secret store could not be read. A source raises it (or a subclass) with a text that is safe to log."""


class SourceTimeout(SourceError, TimeoutError):
    """The secret store did not answer in time."""


class CredentialsRefused(AiopqrError, asyncpg.InvalidPasswordError):
    """Every credential of the pair was refused, and no newer ones arrived in time.

    ``refusals`` holds the server's error for each username that was refused.
    """

    refusals: dict[str, BaseException]

    def __init__(self, message: str, refusals: dict[str, BaseException] | None = None) -> None:
        super().__init__(message)
        self.refusals = refusals or {}


class CredentialsExpired(CredentialsRefused):
    """Every credential of the pair has expired, and no newer ones arrived in time."""


class ConnectTimeout(AiopqrError, TimeoutError):
    """No connection could be opened within ``timeout``; the last failure is the cause."""


class UntrustedServer(AiopqrError, asyncpg.InterfaceError):
    """The server asked for something that ``require_auth`` or ``channel_binding`` does not allow. It got no password.

    The text says what the server asked for and how to allow that. It may not be your server at all, so the other
    account is not tried.
    """


class PoolError(AiopqrError):
    """The base of errors of the pool itself."""


class AcquireTimeout(PoolError, TimeoutError):
    """No connection became free in time. The text shows the pool's numbers. A failed connect, if any, is the cause."""


class TooManyWaiting(PoolError):
    """``max_waiting`` tasks are already waiting for a connection."""


class PoolClosing(PoolError, asyncpg.InterfaceError):
    """The pool is closing or closed, and no longer hands out connections."""


class WrongLoop(PoolError, RuntimeError):
    """The pool belongs to another event loop (in another thread, perhaps), or to the parent of this forked process."""


class RotationError(AiopqrError):
    """The base of errors in a rotation."""


def without_frames(exc: _E) -> _E:
    """Drop the frames of ``exc`` and of its whole chain, since a driver's or a store's frames hold passwords as locals.

    Causes and contexts are kept, so the chain still shows what happened.
    """
    for link in _chain(exc):
        link.__traceback__ = None
    return exc


def without_locals(exc: _E) -> _E:
    """Drop the local variables from the frames of ``exc`` and of its whole chain, but keep files, lines and functions.

    If a user's own code raised the exception, they need to see where.
    """
    for link in _chain(exc):
        link.__traceback__ = _hollow(link.__traceback__)
    return exc


def _chain(exc: BaseException) -> list[BaseException]:
    found: dict[int, BaseException] = {}
    ahead: list[BaseException | None] = [exc]
    while ahead:
        link = ahead.pop()
        if link is not None and id(link) not in found:
            found[id(link)] = link
            ahead += [link.__cause__, link.__context__]
            if isinstance(link, BaseExceptionGroup):
                ahead += link.exceptions
    return list(found.values())


_DEEPEST = 50  # how many frames to keep, since an exception that is raised repeatedly collects more each time


def _hollow(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback that looks the same but has no locals: its frames are those of generators that have never run."""
    places: list[tuple[CodeType, int]] = []
    while traceback is not None and len(places) < _DEEPEST:
        places.append((traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    hollow: TracebackType | None = None
    for code, line in reversed(places):
        likeness = _template.__code__.replace(co_filename=code.co_filename, co_name=code.co_name, co_firstlineno=line)
        hollow = TracebackType(hollow, FunctionType(likeness, {})().gi_frame, -1, line)
    return hollow


def _template() -> Iterator[None]:
    yield


def describe(exc: BaseException) -> str:
    """Describe an error in one line, for events and logs. The text of an unknown type is left out: it may be secret."""
    text = str(exc) if isinstance(exc, AiopqrError | OSError | asyncpg.PostgresError | asyncpg.InterfaceError) else ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
