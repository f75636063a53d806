"""One connection of a pool, and one use of it: plain values, without clock or socket.

A connection's deadline is random, so that connections that were opened together do not all end together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .._refresh import Attempt
from ..errors import ConfigurationError
from ..options import non_negative
from .stand_in import StandIn
from .writers import WriterWatch


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a connection lives: ``max_lifetime`` seconds, minus up to ``jitter`` seconds. 0 means no limit."""

    max_lifetime: float
    jitter: float
    uniform: Callable[[float, float], float] = random.uniform

    def deadline(self, born: float) -> float:
        if not self.max_lifetime:
            return math.inf
        return born + self.max_lifetime - self.uniform(0.0, self.jitter)


def lifetime_option(max_lifetime: float, jitter: float | None) -> Lifetime:
    """The lifetime of connections. If ``jitter`` is None, it is a tenth of ``max_lifetime``."""
    longest = non_negative("max_lifetime", max_lifetime)
    earlier = longest / 10 if jitter is None else non_negative("max_lifetime_jitter", jitter)
    if earlier > longest:
        raise ConfigurationError("max_lifetime_jitter must not be more than max_lifetime")
    return Lifetime(longest, earlier)


@dataclass(eq=False)
class Checkout:
    """One use of a connection, from its acquire to the end of its release. It holds one of the pool's permits.

    The fields with defaults rarely change. Until they do, they are class attributes, which cost nothing to create.
    """

    acquired_at: float
    queries: Any  # the connection's `queries_run` at the acquire
    release_timeout: float | None  # the timeout that was passed to acquire()
    leak_timer: Any = field(default=None, init=False)
    is_releasing: bool = field(default=False, init=False)
    keeps_place: bool = field(default=False, init=False)  # asyncpg is releasing it, so its end does not free its place
    needs_reset: bool = field(default=True, init=False)
    release_by: float = field(default=math.inf, init=False)
    is_overdue: bool = field(default=False, init=False)  # the release took too long, so the connection was terminated


@dataclass(slots=True, eq=False)
class PooledConnection:
    """What the pool knows about one of its connections."""

    con: Any
    attempt: Attempt  # the login that made it
    epoch: int  # the pool's epoch when the connect began
    born: float
    deadline: float
    is_busy: Callable[..., bool | None]  # whether a query is running; None if only the server knows
    stand_in: StandIn | None = None
    watch: WriterWatch | None = None  # None if its server need not accept writes
    idle_since: float = 0.0
    trusted_until: float = -math.inf  # until then, it is handed out without a check
    is_idle: bool = True
    is_surplus: bool = False  # the pool has closed it, because it has been idle for too long
    checkout: Checkout | None = None
    why: str = "lifetime"  # the reason for its deadline
    lease_end: float = math.inf  # the end of the lease that its deadline takes into account
    is_reported: bool = False  # it has been reported as overdue

    def is_due(self, now: float) -> bool:
        return now >= self.deadline

    def expire(self, why: str, now: float) -> None:
        """Make it due now."""
        if self.deadline > now:
            self.deadline, self.why = now, why

    @property
    def is_resetting(self) -> bool:
        """Whether it has been released but is not idle yet."""
        return self.checkout is not None and self.checkout.is_releasing

    def doubt(self, since: float) -> None:
        """Note that something seen at ``since`` suggests that its server no longer accepts writes: check before use."""
        if self.watch is not None:
            self.watch.doubt(since)
            if self.watch.is_doubted:
                self.trusted_until = -math.inf

    def has_answered(self, runs: Any, runs_before: Any) -> bool:
        """Whether everything that was run between two values of `queries_run` is finished. False if only asyncpg knows.

        asyncpg counts a query when it is sent. So if the count has not changed since the last answer, nothing has been
        sent after that answer. Operations that asyncpg does not count may have several answers, so this returns False
        if there were any.
        """
        (queries, others), stand_in = runs, self.stand_in
        return stand_in is not None and others == runs_before[1] and queries == stand_in.answered

    def lend(self) -> None:
        """Mark it as in use."""
        self.is_idle = False
        if self.stand_in is not None:
            self.stand_in.lend()

    def reserve(self) -> None:
        """Reserve it for a task that has not taken it yet. Until then, still notice if the server closes it."""
        self.is_idle = False

    def rest(self, is_busy: bool | None) -> None:
        """Mark it as idle. If it is certainly not busy, notice if the server closes it from now on."""
        self.is_idle = True
        self.listen(is_busy)

    def listen(self, is_busy: bool | None) -> None:
        """While nobody uses it, notice if the server closes it, provided that it is certainly not busy."""
        if self.stand_in is not None and is_busy is False:
            self.stand_in.watch()

    def was_used(self, since: float) -> bool:
        """Whether it was in use after ``since``."""
        return not self.is_idle or self.idle_since > since
