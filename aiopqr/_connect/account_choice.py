"""Which account a connect uses, which are refused, and what a refusal means: pure state, without clock, loop or socket.

The rules, and why:

* :meth:`Alternator.begin` decides from what is known now, without awaiting. It uses the account that the previous
  connection did not use, unless that is the only one refused. While both accounts work, new connections split evenly,
  even when opened concurrently.
* A refusal counts against a password, never against an account. A late refusal of an old password says nothing about
  the new one, and if the store returns to a refused password, that alone is no reason to try it again. So a rotation
  costs one failed login, or as many as were in flight. That matters, because servers and proxies react to failed logins
  with lockouts, alarms and rate limits.
* A fallback uses the account that *this attempt* did not use, which may not be the one whose turn is next.
* A password that is known to be refused is only used for probes: one at a time, 30 s after the refusal, then at
  doubling intervals of up to 10 min. While any account works, probes run in the background.
* A pending password (in the store, but perhaps not yet in the database) is a last resort. It announces that its account
  is about to change. So while the :class:`Announcement` lasts, the other account is used as long as it works. Then no
  login is refused, no matter when the rotator makes the change.
* The account that a single-account store named before (``last_resort``) is used only while all others are refused.
* An expired credential is never used to log in. If an account's credentials expire, a new password is a renewal, not a
  rotation: connections that were opened with the old one need not be replaced.
* A refusal that depends on the database or host (no LOGIN, no CONNECT, connection limit) only affects this alternator.
  A refused password affects everything that shares the :class:`Quarantine`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .._refresh import Announcement, Attempt, Expiry, Quarantine
from ..credentials import Credential, CredentialPair, Parity
from ..refusals import Verdict

FULL_PAUSE = 5.0
ENDING = 30.0  # use the other account if this one's sessions end within this many seconds
EXPIRED_PAUSE = 30.0  # long, because only newer credentials help, and their arrival ends the wait


@dataclass(frozen=True, slots=True)
class Wait:
    """No login is worth trying before ``until``, unless newer credentials arrive first."""

    until: float


@dataclass(slots=True, eq=False, weakref_slot=True)
class Alternator:
    """Chooses the account for each login of one connector, and holds the connector's pair."""

    pair: CredentialPair
    refused: Quarantine = field(default_factory=Quarantine)
    announcement: Announcement = field(default_factory=Announcement)
    expiry: Expiry = field(default_factory=Expiry)
    version: int = 1
    _local: Quarantine = field(default_factory=Quarantine)
    _full_until: dict[str, float] = field(default_factory=dict)
    _last: Parity | None = None

    def begin(self, now: float) -> Attempt | Wait:
        """Choose the login with which a connect starts."""
        preferred = self._last.other if self._last else self.pair.active
        if self._steps_aside(preferred, now):
            preferred = preferred.other
        for parity in (preferred, preferred.other):
            if (credential := self.pair[parity]) and self._is_usable(credential, now):
                return self._take(parity, credential, now)
        if attempt := self._last_resort(now):
            return attempt
        return Wait(self._next_chance(now))

    def fallback(self, attempt: Attempt, now: float) -> Attempt | None:
        """Choose the account that this attempt did not use, or return None if that is not usable either."""
        parity = attempt.parity.other
        credential = self.pair[parity]
        if credential and credential != attempt.credential and self._is_usable(credential, now):
            return self._take(parity, credential, now)
        return None

    def probe(self, now: float) -> Attempt | None:
        """Choose a login for the background that tests whether a refused account works again.

        Returns None if none is due, or if no other account works.
        """
        if (self.refused.is_empty and self._local.is_empty) or self.is_refused(now):
            return None
        for parity in Parity:
            credential = self.pair[parity]
            if not credential or not self._is_refused(credential):
                continue
            if not self._steps_aside(parity, now) and self._claim_probe(credential, now):
                return Attempt(parity, credential, self.version, now, probe=True)
        return None

    def rejected(self, attempt: Attempt, verdict: Verdict, now: float) -> bool:
        """Record that the server refused the attempt. Returns True if that was not known yet."""
        match verdict:
            case Verdict.CREDENTIAL:
                return self.refused.refuse(attempt, now)
            case Verdict.ACCOUNT:
                return self._local.refuse(attempt, now)
            case Verdict.ACCOUNT_FULL:
                self._full_until[attempt.credential.username] = now + FULL_PAUSE
        self.abandoned(attempt, now)
        return False

    def accepted(self, attempt: Attempt, now: float) -> float | None:
        """Record that the attempt logged in. Returns how long it had been refused before, or None if it had not."""
        self._full_until.pop(attempt.credential.username, None)
        locally = self._local.accept(attempt, now)
        shared = self.refused.accept(attempt, now)
        return shared if locally is None else locally

    def abandoned(self, attempt: Attempt, now: float) -> None:
        """Record that the attempt was inconclusive (an outage, a cancellation). If it was a probe, allow another."""
        if attempt.probe:
            self.refused.release_probe(attempt, now)
            self._local.release_probe(attempt, now)

    def replace(self, pair: CredentialPair) -> None:
        """Use a newer pair. The alternation continues where it was."""
        self.version += pair != self.pair
        self.pair = pair  # even if it is equal, since it may expire later

    def is_superseded(self, attempt: Attempt, now: float) -> bool:
        """Whether the account has a new password by now, or is no longer in the pair.

        If the account's credentials expire, a new password is only a renewal and supersedes nothing.
        """
        if attempt.credential == self.pair.last_resort:
            return not self.is_refused(now)  # needed while the others are refused or have expired
        if self._is_current(attempt):
            return False
        account = self.account(attempt.credential.username)
        return account is None or account.expires_at is None

    def has_left(self, attempt: Attempt) -> bool:
        """Whether the account of this attempt is no longer in the pair, not even with another password."""
        return not self._is_current(attempt) and self.account(attempt.credential.username) is None

    def account(self, username: str) -> Credential | None:
        """The account of that name in the current pair."""
        return next((account for account in self.pair.credentials() if account.username == username), None)

    def ends_at(self, attempt: Attempt) -> float:
        """When the lease of this attempt's account ends its sessions, in loop time; infinity without a lease."""
        account = self.account(attempt.credential.username) or attempt.credential
        return self._end(account)

    def lasts_until(self, now: float) -> float:
        """The latest end of a usable account's sessions, in loop time."""
        usable = [account for account in (self.pair.odd, self.pair.even) if account and self._is_usable(account, now)]
        return max((self._end(account) for account in usable), default=-math.inf)

    def is_worthwhile(self, attempt: Attempt, now: float) -> bool:
        """Whether an attempt that had to wait is still worth making: not superseded, refused or expired by now."""
        credential = attempt.credential
        if not self._is_current(attempt) or self.expiry.has_passed(credential, now):
            return False
        return attempt.probe or not self._is_refused(credential)

    def is_refused(self, now: float) -> bool:
        """Whether every account of the pair is refused or has expired. A pending password does not count."""
        return not any(
            account and not self._is_refused(account) and not self.expiry.has_passed(account, now)
            for account in (self.pair.odd, self.pair.even)
        )

    def expires_in(self, credential: Credential, now: float) -> float | None:
        """Seconds until a credential expires: negative if it has expired, None if it never does."""
        end = self.expiry.at(credential)
        return None if end == math.inf else end - now

    def has_expired(self, now: float) -> bool:
        """Whether every account of the pair has expired."""
        return all(self.expiry.has_passed(a, now) for a in (self.pair.odd, self.pair.even) if a)

    def retry_at(self, credential: Credential) -> float:
        """When a refused password may be probed."""
        return max(q.retry_at(credential) for q in (self.refused, self._local) if credential in q)

    def refused_since(self, credential: Credential) -> float | None:
        since = [q.since(credential) for q in (self.refused, self._local)]
        return min((s for s in since if s is not None), default=None)

    def _take(self, parity: Parity, credential: Credential, now: float, *, probe: bool = False) -> Attempt:
        self._last = parity
        return Attempt(parity, credential, self.version, now, probe)

    def _steps_aside(self, parity: Parity, now: float) -> bool:
        """Whether the account is about to change, or its lease to end, while the other account works."""
        account, other = self.pair[parity], self.pair[parity.other]
        if other is None:
            return False
        end = self._end(account) if account else math.inf
        is_ending = end < now + ENDING and end < self._end(other)
        return (is_ending or self.announcement.avoided(now) is parity) and self._is_usable(other, now)

    def _end(self, account: Credential) -> float:
        """When the account's sessions end, in loop time."""
        return self.expiry.at(account) if account.ends_sessions else math.inf

    def _last_resort(self, now: float) -> Attempt | None:
        pending, parity = self.pair.pending, self.pair.pending_parity
        if pending and parity and self.is_refused(now) and self._is_usable(pending, now):
            return self._take(parity, pending, now)
        before = self.pair.last_resort
        if before and self.is_refused(now) and self._is_usable(before, now):
            return self._take(self.pair.empty or Parity.EVEN, before, now)
        for credential in self.pair.credentials():
            if self._claim_probe(credential, now):
                unnamed = parity if credential == pending else self.pair.empty
                owner = next((p for p in Parity if self.pair[p] == credential), unnamed) or Parity.EVEN
                return self._take(owner, credential, now, probe=True)
        return None

    def _next_chance(self, now: float) -> float:
        # A pending password is only tried when both accounts are refused.
        candidates = self.pair.credentials() if self.is_refused(now) else (self.pair.odd, self.pair.even)
        chances = [
            max(self.retry_at(c) if self._is_refused(c) else now, self._full_until.get(c.username, now))
            for c in candidates
            if c and not self.expiry.has_passed(c, now)
        ]
        return min(chances, default=now + EXPIRED_PAUSE)

    def _is_current(self, attempt: Attempt) -> bool:
        return attempt.version == self.version or attempt.credential in self.pair.credentials()

    def _is_refused(self, credential: Credential) -> bool:
        return credential in self.refused or credential in self._local

    def _is_usable(self, credential: Credential, now: float) -> bool:
        is_paused = now < self._full_until.get(credential.username, now)
        return not (is_paused or self._is_refused(credential) or self.expiry.has_passed(credential, now))

    def _claim_probe(self, credential: Credential, now: float) -> bool:
        holders = [q for q in (self.refused, self._local) if credential in q]
        # Also wait if a probe found the account's connection limit reached: that does not show whether it works again.
        if not holders or self.expiry.has_passed(credential, now):
            return False
        if now < max(self.retry_at(credential), self._full_until.get(credential.username, now)):
            return False
        for quarantine in holders:
            quarantine.claim_probe(credential, now)
        return True
