"""Which account to avoid because its password is about to change: a state machine without a clock.

A store that holds a pending password for one account announces that the rotator will soon change that account. A pool
that uses the other account until the announcement is over makes no login that could be refused, whenever the change
itself happens. A rotator may have died in between, so an announcement counts for 15 minutes at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..credentials import Credential, CredentialPair, Parity

STEP_ASIDE_MAX = 900.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A pending password that differs from its account's own. It counts until ``until``."""

    parity: Parity
    pending: Credential
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A stage no longer counts: it was ``closed`` in the store, or open for too long."""

    stage: Stage
    closed: bool


class Announcement:
    """The stage that the store shows. The alternators that share a refresher share it."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self._counts = False  # whether `hear` has reported the stage, and not yet its end

    def avoided(self, now: float) -> Parity | None:
        """The account to avoid while the other one works, or None."""
        return self.stage.parity if self.stage and now < self.stage.until else None

    def hear(self, pair: CredentialPair, now: float, age: float = 0.0) -> Iterator[Stage | Ended]:
        """Take note of what the store shows now, and report what begins or ends with it.

        ``age`` (seconds) is how long ago the store says that the password was staged.
        """
        before, self.stage = self.stage, self._next(pair, now, age)
        is_open = self.avoided(now) is not None
        if before and self._counts and not (is_open and before is self.stage):
            self._counts = False
            yield Ended(before, closed=before is not self.stage)
        if self.stage and is_open and not self._counts:
            self._counts = True
            yield self.stage

    def _next(self, pair: CredentialPair, now: float, age: float) -> Stage | None:
        pending, parity = pair.pending, pair.pending_parity
        # An account that the pair lacks is not avoided, and one that has no counterpart cannot be.
        if pending is None or parity is None or pair.missing or pending == pair[parity]:
            return None
        if self.stage and self.stage.pending == pending:
            return self.stage
        return Stage(parity, pending, now, now + STEP_ASIDE_MAX - max(age, 0.0))
