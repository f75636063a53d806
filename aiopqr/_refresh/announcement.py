"""Which account to avoid because its password is about to change: a state machine without a clock.

A store that holds a pending password for one account announces that the rotator will soon change that account. While
the announcement lasts, pools log in with the other account, so none of their logins is refused, no matter when the
password actually changes. The rotator may have died in between, so an announcement lasts 15 minutes at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..credentials import Credential, CredentialPair, Parity

STEP_ASIDE_MAX = 900.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A pending password that differs from the account's current one. The announcement lasts until ``until``."""

    parity: Parity
    pending: Credential
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A stage is over, because the store ``closed`` it or because it was open for too long."""

    stage: Stage
    closed: bool


class Announcement:
    """The stage that the store currently shows. Alternators that share a refresher share it."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self._is_reported = False  # `update` has reported the beginning of the stage, but not its end

    def avoided(self, now: float) -> Parity | None:
        """The account to avoid while the other one works, or None."""
        return self.stage.parity if self.stage and now < self.stage.until else None

    def update(self, pair: CredentialPair, now: float, age: float = 0.0) -> Iterator[Stage | Ended]:
        """Note what the store shows now, and report stages that begin or end.

        ``age`` is how many seconds ago the password was staged, according to the store.
        """
        before, self.stage = self.stage, self._next(pair, now, age)
        is_open = self.avoided(now) is not None
        if before and self._is_reported and not (is_open and before is self.stage):
            self._is_reported = False
            yield Ended(before, closed=before is not self.stage)
        if self.stage and is_open and not self._is_reported:
            self._is_reported = True
            yield self.stage

    def _next(self, pair: CredentialPair, now: float, age: float) -> Stage | None:
        pending, parity = pair.pending, pair.pending_parity
        # There is nothing to avoid if the pair lacks the staged account, and no way to avoid it if it lacks the other.
        if pending is None or parity is None or pair.missing or pending == pair[parity]:
            return None
        if self.stage and self.stage.pending == pending:
            return self.stage
        return Stage(parity, pending, now, now + STEP_ASIDE_MAX - max(age, 0.0))
