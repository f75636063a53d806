"""One connection of a pool, and one use of it: values, without clock or socket.

A deadline is drawn once, at birth, so that connections that were opened together do not end together.
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
    """How long a connection lives: ``max_lifetime`` seconds less up to ``jitter`` seconds; 0 sets no limit."""

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


@dataclass(eq=False)
class Checkout:
    """One use of a connection, from its acquire to the end of its release. It holds one of the pool's permits.

    Most uses leave the fields that are not given as they are. They stay in the class then, which costs nothing.
    """

    acquired_at: float
    queries: Any  # run before it
    release_timeout: float | None  # what the acquire was given
    leak_timer: Any = field(default=None, init=False)
    is_releasing: bool = field(default=False, init=False)
    needs_reset: bool = field(default=True, init=False)
    release_by: float = field(default=math.inf, init=False)
    is_overdue: bool = field(default=False, init=False)  # its release took too long, and the connection was terminated


@dataclass(slots=True, eq=False)
class PooledConnection:
    """What the pool knows of one of its connections."""

    con: Any
    attempt: Attempt  # the login that made it
    epoch: int  # of the pool, when the connect began
    born: float
    deadline: float
    is_busy: Callable[..., bool | None]  # whether a query runs on it; None if only the server knows
    stand_in: StandIn | None = None
    watch: WriterWatch | None = None  # where its server has to take writes
    idle_since: float = 0.0
    trusted_until: float = -math.inf  # it is handed out without a check until then
    is_idle: bool = True
    checkout: Checkout | None = None
    why: str = "lifetime"  # what makes it due
    lease_end: float = math.inf  # that its deadline takes into account
    is_reported: bool = False  # it is overdue, and that was reported

    def is_due(self, now: float) -> bool:
        return now >= self.deadline

    def expire(self, why: str, now: float) -> None:
        """Make it due at once."""
        if self.deadline > now:
            self.deadline, self.why = now, why

    @property
    def is_resetting(self) -> bool:
        """Whether it has been released, and is not idle yet."""
        return self.checkout is not None and self.checkout.is_releasing

    def doubt(self, since: float) -> None:
        """Its server may take no writes any more, by what was seen at ``since``: ask it before the next use."""
        if self.watch is not None:
            self.watch.doubt(since)
            if self.watch.is_doubted:
                self.trusted_until = -math.inf

    def has_answered(self, runs: Any, runs_before: Any) -> bool:
        """Whether nothing is under way of what has run between two `queries_run`. False if only asyncpg knows.

        It counts no query before it is sent, so none has been sent after the last answer if the number is still what
        it was then. What it does not count itself may have an answer that does not end it.
        """
        (queries, others), stand_in = runs, self.stand_in
        return stand_in is not None and others == runs_before[1] and queries == stand_in.answered

    def lend(self) -> None:
        """It is in use from now on."""
        self.is_idle = False
        if self.stand_in is not None:
            self.stand_in.lend()

    def reserve(self) -> None:
        """It is for somebody who has not come for it yet. Until then, the server's goodbye is heard."""
        self.is_idle = False

    def rest(self, is_busy: bool | None) -> None:
        """It is idle from now on. If it is known not to be busy, the server's goodbye will be heard."""
        self.is_idle = True
        self.listen(is_busy)

    def listen(self, is_busy: bool | None) -> None:
        """Nobody uses it. If it is known not to be busy, the server's goodbye will be heard."""
        if self.stand_in is not None and is_busy is False:
            self.stand_in.watch()

    def was_used(self, since: float) -> bool:
        """Whether it was in use after ``since``."""
        return not self.is_idle or self.idle_since > since
