"""Which credentials are refused, and when each may be tried again: a state machine that pools may share.

A refusal counts against a password, never against an account: a late refusal of an old password says nothing about the
new one. Only digests are kept, so old passwords do not stay in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..credentials import Credential, Parity

PROBE_FIRST = 30.0
PROBE_MAX = 600.0
_REMEMBERED = 64

Digest = tuple[str, bytes]  # an account's name, and the digest of one of its passwords


def digest(credential: Credential) -> Digest:
    """What distinguishes credentials without revealing them. It differs in each process."""
    return credential.username, credential.password.digest


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login to make. ``version`` is the pair's version when the attempt began; the outcome is judged by it."""

    parity: Parity
    credential: Credential
    version: int
    begun: float
    probe: bool = False


@dataclass(slots=True)
class _Refusal:
    since: float
    begun: float  # when the latest refused login began
    retry_at: float
    delay: float


class Quarantine:
    """The refused credentials, and when each may be tried again. Several alternators may share one."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._refused: dict[Digest, _Refusal] = {}
        self._accepted: dict[Digest, float] = {}  # when the latest successful login began

    @property
    def is_empty(self) -> bool:
        """Whether nothing is refused."""
        return not self._refused

    def __contains__(self, credential: Credential) -> bool:
        return bool(self._refused) and digest(credential) in self._refused

    def since(self, credential: Credential) -> float | None:
        refusal = self._refused.get(digest(credential))
        return refusal.since if refusal else None

    def retry_at(self, credential: Credential) -> float:
        return self._refused[digest(credential)].retry_at

    def refuse(self, attempt: Attempt, now: float) -> bool:
        """Record a refused password. Returns False if that was known already or is out of date."""
        credential = digest(attempt.credential)
        if self._accepted.get(credential, float("-inf")) > attempt.begun:
            return False  # a login that began later was accepted, so the password works by now
        known = self._refused.get(credential)
        if known:
            known.begun = max(known.begun, attempt.begun)
        if known and not attempt.probe:
            return False
        delay = min(known.delay * 2, PROBE_MAX) if known else PROBE_FIRST
        since, begun = (known.since, known.begun) if known else (now, attempt.begun)
        self._refused.pop(credential, None)  # moves it to the end: the oldest refusal is forgotten first
        self._refused[credential] = _Refusal(since, begun, now + delay * self._uniform(0.8, 1.2), delay)
        self._forget_oldest()
        return not known

    def accept(self, attempt: Attempt, now: float) -> float | None:
        """Record a password that works. Returns how long it had been refused, or None if it had not been."""
        credential = digest(attempt.credential)
        self._accepted[credential] = max(self._accepted.pop(credential, attempt.begun), attempt.begun)
        self._forget_oldest()
        refusal = self._refused.get(credential)
        if refusal is None or refusal.begun > attempt.begun:
            return None  # a login that began later was refused, so the password has been changed since
        del self._refused[credential]
        return now - refusal.since

    def claim_probe(self, credential: Credential, now: float) -> bool:
        """Return whether a probe is due. If so, the caller must make it; nobody else will until the next is due."""
        refusal = self._refused.get(digest(credential))
        if refusal is None or now < refusal.retry_at:
            return False
        refusal.retry_at = now + refusal.delay
        return True

    def release_probe(self, attempt: Attempt, now: float) -> None:
        """After an inconclusive probe (outage, cancellation), allow another now unless a later one has reported."""
        refusal = self._refused.get(digest(attempt.credential))
        if refusal and refusal.begun < attempt.begun:
            refusal.retry_at = now

    def _forget_oldest(self) -> None:
        for memory in (self._refused, self._accepted):
            while len(memory) > _REMEMBERED:
                del memory[next(iter(memory))]
