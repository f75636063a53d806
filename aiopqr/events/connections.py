"""Events about a pool's connections."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from ..credentials import Parity
from .event import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced(Event):
    """A connection was replaced at the age of ``age`` seconds. ``why`` is lifetime, superseded or drain."""

    parity: Parity
    age: float
    why: str

    def __str__(self) -> str:
        account = f"connection of the {self.parity} account"
        return f"{self.name}: replaced a {account} that was {self.age:.0f} s old ({self.why})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementDelayed(Event):
    """No replacement can be opened, so connections stay in use past their lifetime.

    The oldest is ``overdue`` seconds past it. The next attempt is in ``retry_in`` seconds.
    """

    level: ClassVar = logging.WARNING
    error: str
    overdue: float
    retry_in: float

    def __str__(self) -> str:
        return (
            f"{self.name}: no replacement could be opened ({self.error}); connections stay in use past their lifetime, "
            f"the oldest by {self.overdue:.0f} s; trying again in {self.retry_in:.1f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOverdue(Event):
    """A connection is ``overdue`` seconds past its lifetime, because it is in use or because it cannot be replaced.

    In the second case, ``is_idle`` is true. Emitted once for each connection.
    """

    level: ClassVar = logging.INFO
    overdue: float
    is_idle: bool

    def __str__(self) -> str:
        why = "no replacement is ready" if self.is_idle else "it is in use"
        return f"{self.name}: a connection is {self.overdue:.0f} s past the end of its lifetime, because {why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded(Event):
    """A connection was closed because its account's lease ended before a replacement could be opened.

    ``in_use`` says whether the connection was in use at that moment.
    """

    level: ClassVar = logging.WARNING
    username: str
    in_use: bool

    def __str__(self) -> str:
        state = "a connection in use" if self.in_use else "an idle connection"
        return f"{self.name}: closed {state} of {self.username}, whose lease ended before a replacement could be opened"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost(Event):
    """A connection was found dead. ``when`` is "idle", "being released" or "being opened", during ``init=``."""

    level: ClassVar = logging.INFO
    when: str
    error: str

    def __str__(self) -> str:
        return f"{self.name}: a connection was lost while {self.when} ({self.error}); the pool replaces it"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotWritable(Event):
    """A connection was closed because its server no longer accepts writes; all others are being checked.

    ``server`` is the address to which the connection was opened, or None. Emitted at most once a second.
    """

    level: ClassVar = logging.WARNING
    server: str | None

    def __str__(self) -> str:
        where = f"the server at {self.server}" if self.server else "the server of a connection"
        return f"{self.name}: {where} no longer accepts writes; closing all connections to it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetFailed(Event):
    """A deferred reset of a session failed, so the connection was closed."""

    level: ClassVar = logging.WARNING
    error: str

    def __str__(self) -> str:
        return f"{self.name}: a session could not be reset ({self.error}); its connection was closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakSuspected(Event):
    """A connection has not been released for ``held`` seconds. ``stack`` shows where it was acquired."""

    level: ClassVar = logging.WARNING
    held: float
    stack: str

    def __str__(self) -> str:
        held = f"a connection has not been released for {self.held:.0f} s"
        return f"{self.name}: {held}; it was acquired here:\n{self.stack}"
