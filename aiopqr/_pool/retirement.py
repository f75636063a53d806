"""Decides which connection to retire, and when: one pure decision, without clock or socket.

The rules, and why:

* Make before break. A connection that is due is closed only when a *spare* (a connection without a place) is ready to
  take its place. There is at most one spare, and only if there is room for its socket.
* An idle connection beyond ``min_size`` that nobody has used for a while is closed without a spare.
* The spare is opened early enough to be ready at the deadline, judging by the duration of the last login. Connections
  that fall due together are replaced one after another, so the first of them is replaced earlier.
* A connection that stays checked out past its deadline does not delay others: the spare replaces whichever connection
  is idle or is released first. If no due connection comes back while the spare waits, the spare is closed. No other
  spare is opened for the connections that were held all that time until they have been released once.
* If no spare can be opened, the old connections remain in use. Each is reported as overdue once.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from .connection import PooledConnection

SPARE_PATIENCE = 30.0  # how long a spare waits for a due connection
GRACE = 1.0  # how many seconds past its deadline a connection counts as overdue


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing until ``until``, or until something happens."""

    until: float


@dataclass(frozen=True, slots=True)
class Report:
    """Report that this connection is overdue."""

    pooled: PooledConnection


@dataclass(frozen=True, slots=True)
class Close:
    """Close this idle connection without a replacement."""

    pooled: PooledConnection


@dataclass(frozen=True, slots=True)
class Swap:
    """Put the spare in the place of this idle connection."""

    pooled: PooledConnection


@dataclass(frozen=True, slots=True)
class Open:
    """Open a spare, mainly to replace ``due``; None if it is for a waiting task."""

    due: PooledConnection | None


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the spare, because it can no longer be used or because no due connection came back (``is_unused``)."""

    is_unused: bool


Step = Sleep | Report | Close | Swap | Open | Discard


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything that a decision depends on. Times are in seconds, in loop time."""

    now: float
    connections: Collection[PooledConnection]
    floor: int
    room: int  # how many more sockets there may be
    spare: PooledConnection | None = None
    is_spoilt: bool = False  # the spare can no longer be used
    is_wanted: bool = False  # a task is waiting that may need a spare
    login_time: float = 0.0  # how long it took to open the last spare
    recent: float = math.inf  # a connection used in the last ``recent`` seconds is still needed
    not_before: float = -math.inf  # after a failure, open no spare before then
    unused_since: float | None = None  # when a spare was closed unused


def decide(s: Situation) -> Step:
    """Decide on the one thing to do now, or how long to sleep."""
    if s.spare is not None and s.is_spoilt:
        return Discard(is_unused=False)
    for pooled in s.connections:
        if s.now >= pooled.deadline + GRACE and not pooled.is_reported:
            return Report(pooled)
    idle = [pooled for pooled in s.connections if pooled.is_idle]
    if len(s.connections) > s.floor:
        for pooled in idle:
            if pooled.is_due(s.now) and not pooled.was_used(s.now - s.recent):
                return Close(pooled)
    if s.spare is not None:
        return _with_spare(s, s.spare, idle)
    worth = worth_a_spare(s.connections, s.unused_since)
    start = max(-math.inf if s.is_wanted else _start(worth, s.login_time, 1), s.not_before)
    if s.room >= 1 and s.now >= start:
        return Open(min(worth, key=_oldest_idle_first, default=None))
    return Sleep(min(start if s.room >= 1 else math.inf, _next_look(s, idle)))


def worth_a_spare(connections: Collection[PooledConnection], unused_since: float | None) -> list[PooledConnection]:
    """All connections, except those that have been checked out since before a spare was closed unused."""
    if unused_since is None:
        return list(connections)
    return [c for c in connections if c.checkout is None or c.checkout.acquired_at > unused_since]


def _with_spare(s: Situation, spare: PooledConnection, idle: list[PooledConnection]) -> Step:
    start, given_up = _start(idle, s.login_time, 0), min(spare.born + SPARE_PATIENCE, spare.deadline)
    if s.now >= start:
        return Swap(min(idle, key=_oldest_idle_first))
    if s.now >= given_up:
        return Discard(is_unused=True)
    return Sleep(min(start, given_up, _next_look(s, idle)))


def _start(connections: Collection[PooledConnection], login_time: float, first: int) -> float:
    """When to begin so that each connection is replaced by its deadline, one after another.

    ``first`` is 1 if the first replacement has yet to be opened. No matter how slow logins are, no connection is
    replaced in the first half of its life.
    """
    by_deadline = sorted(connections, key=lambda pooled: pooled.deadline)
    return min(
        (
            pooled.deadline - min(number * login_time, (pooled.deadline - pooled.born) / 2)
            for number, pooled in enumerate(by_deadline, first)
            if pooled.deadline < math.inf
        ),
        default=math.inf,
    )


def _next_look(s: Situation, idle: list[PooledConnection]) -> float:
    """When a connection becomes overdue, an idle one becomes due, or a due one has not been used for long enough."""
    overdue = (pooled.deadline + GRACE for pooled in s.connections if not pooled.is_reported)
    due = (max(pooled.deadline, pooled.idle_since + s.recent) for pooled in idle)
    return min((when for when in (*overdue, *due) if when > s.now), default=math.inf)


def _oldest_idle_first(pooled: PooledConnection) -> tuple[bool, float]:
    return not pooled.is_idle, pooled.deadline
