"""How old a connection may get, and which one is retired next: values and decisions, without clock or socket.

A deadline is drawn once, at birth, so that connections opened together do not end together. A due connection is retired
only for a replacement that is ready (``replacement``), except an idle one that nobody would miss.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .._refresh import Attempt
from ..errors import ConfigurationError
from ..options import non_negative


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a connection lives: ``max_lifetime`` seconds less up to ``jitter`` seconds; 0 means for ever."""

    max_lifetime: float
    jitter: float
    uniform: Callable[[float, float], float] = random.uniform

    def deadline(self, born: float) -> float:
        if not self.max_lifetime:
            return math.inf
        return born + self.max_lifetime - self.uniform(0.0, self.jitter)


def lifetime_option(max_lifetime: float, jitter: float | None) -> Lifetime:
    """How old connections get; the jitter is a tenth unless given."""
    longest = non_negative("max_lifetime", max_lifetime)
    earlier = longest / 10 if jitter is None else non_negative("max_lifetime_jitter", jitter)
    if earlier > longest:
        raise ConfigurationError("max_lifetime_jitter must not be more than max_lifetime")
    return Lifetime(longest, earlier)


@dataclass(slots=True, eq=False)
class PooledConnection:
    """What the pool knows of one of its connections."""

    con: Any
    attempt: Attempt | None
    epoch: int  # of the pool's connect arguments, when the connect began
    born: float
    deadline: float
    is_busy: Callable[[], bool]  # whether a query runs on it
    why: str = "lifetime"  # what makes it due
    lease_end: float = math.inf  # that its deadline takes into account
    retiring: bool = False
    is_idle: bool = True
    idle_since: float = 0.0
    acquired_at: float = -math.inf
    queries: Any = None  # run when it was acquired
    release_timeout: float | None = None
    needs_reset: bool = True
    is_releasing: bool = False
    release_by: float = math.inf
    is_overdue: bool = False  # its release took longer, and it was terminated
    holds_permit: bool = False
    leak_timer: Any = None

    def is_due(self, now: float) -> bool:
        return now >= self.deadline and not self.retiring

    def expire(self, why: str, now: float) -> None:
        """Make it due at once."""
        if self.deadline > now:
            self.deadline, self.why = now, why

    def is_missed(self, since: float) -> bool:
        """Whether it was in use after ``since``."""
        return not self.is_idle or self.idle_since > since


def next_deadline(connections: Iterable[PooledConnection]) -> float:
    """When the next connection becomes due; ``inf`` if none will."""
    return min((s.deadline for s in connections if not s.retiring), default=math.inf)


def most_overdue(connections: Iterable[PooledConnection], now: float) -> PooledConnection | None:
    """The connection to retire first: idle ones before busy ones, then the oldest deadline."""
    due = [s for s in connections if s.is_due(now)]
    return min(due, key=lambda s: (not s.is_idle, s.deadline), default=None)
