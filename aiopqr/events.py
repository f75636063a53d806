"""What changed, as frozen records for listeners: one for each thing that an operator may want to hear of.

A listener is a plain function of one event, called on the event loop; it must not block. No event holds a secret. None
is emitted for a mere acquire, release or query: those are counted (``stats``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .credentials import Parity

logger = logging.getLogger("aiopqr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base of all events. ``name`` is that of the pool, connector or refresher which it comes from."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRefused(Event):
    """The server refused an account. ``verdict`` is a :class:`~aiopqr.refusals.Verdict`'s text."""

    parity: Parity
    username: str
    verdict: str
    sqlstate: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountQuarantined(LoginRefused):
    """A refused account is set aside until a newer password comes, or until a probe is due, ``retry_in`` seconds on."""

    retry_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecovered(Event):
    """An account that was set aside logs in again, ``after`` seconds later."""

    parity: Parity
    username: str
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack(Event):
    """A connect whose first account was refused went on with the other one."""

    refused: Parity
    parity: Parity
    username: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AllRefused(Event):
    """Every account of the pair is refused: connects wait for newer credentials. ``pair_age`` is in seconds."""

    usernames: tuple[str, ...]
    pair_age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUnavailable(Event):
    """A connect met an outage for the first time since the last success; connects retry within their deadlines."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecovered(Event):
    """The server lets in, or refuses, again, ``after`` seconds of outage."""

    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed(Event):
    """A fetch succeeded and brought something new: ``changed`` accounts, or a pending password."""

    changed: tuple[Parity, ...]
    pending: Parity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshFailed(Event):
    """A fetch failed; the pair in use stays. The next comes in ``retry_in`` seconds."""

    error: str
    failures: int
    retry_in: float
    pair_age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshRecovered(Event):
    """A fetch succeeded after ``failures`` failures in a row, whether or not it brought anything new."""

    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDegraded(Event):
    """The store names one account only: there is nothing to fall back to."""

    missing: Parity


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced(Event):
    """A connection was retired after ``age`` seconds, its replacement ready. ``why``: lifetime, superseded or drain."""

    parity: Parity | None
    age: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementDelayed(Event):
    """No replacement can be had, so connections serve on past their deadline, the oldest by ``overdue`` seconds."""

    error: str
    overdue: float
    retry_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost(Event):
    """A connection was found dead. ``when``: idle, or being released."""

    when: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakSuspected(Event):
    """A connection has been held for ``held`` seconds. ``stack`` is where it was acquired."""

    held: float
    stack: str


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
    RefreshFailed: logging.WARNING,
    RefreshRecovered: logging.INFO,
    PairDegraded: logging.WARNING,
    ReplacementDelayed: logging.WARNING,
    ConnectionLost: logging.INFO,
    LeakSuspected: logging.WARNING,
}


class Emitter:
    """Tells the log and the listeners of an event. A listener that raises is logged and harms nobody."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        """Tell the log and the listeners."""
        if level := _LEVELS.get(type(event)):
            logger.log(level, "%s", event, extra={"event": event})
        self.tell(event)

    def tell(self, event: Event) -> None:
        """Tell the listeners, of what another emitter has logged."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                logger.exception("%s: listener %r failed on %s", event.name, listener, type(event).__name__)
