"""Which account a connect uses, who is suspect, what a refusal means: a state machine without clock, loop or socket.

The rules, and why:

* :meth:`Alternator.begin` decides from what is known now, without awaiting. It uses the account that the previous
  connection did not, unless that one is refused and the other is not. While both accounts work, new connections split
  evenly, even when opened concurrently.
* A refusal counts against a password, never against an account. A late refusal of an old password says nothing about
  the new one, and a refused password is not tried again because the store returns to it. So a rotation costs one failed
  login, or as many as were in flight; servers and proxies lock out, alarm and rate-limit on failed logins.
* A fallback uses the account that *this attempt* did not, never whatever would be next by now.
* A password that is known to be refused is not used, except by a probe: one at a time, 30 s after the refusal, then at
  doubling intervals up to 10 min. While any account works, probes run in the background.
* A pending password (one that the store holds but nobody promised to be in force) is the last resort. It announces that
  its account is about to change, so while the :class:`Announcement` counts, the other account is used as long as it
  works. Whatever moment the rotator then picks for the change, nobody is refused.
* The account that a store of one account named before (``last_resort``) is used only while all others are refused.
* An expired credential makes no login at all. A newer password of an account that expires is a renewal, not a rotation.
* A refusal that depends on the database or host (no LOGIN, no CONNECT, connection limit) stays with this alternator; a
  refused password is the same for all that share the :class:`Quarantine`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .._refresh import Announcement, Attempt, Expiry, Quarantine
from ..credentials import Credential, CredentialPair, Parity
from ..refusals import Verdict

FULL_PAUSE = 5.0
ENDING = 30.0  # seconds before the end of an account's sessions from which the other one is used
EXPIRED_PAUSE = 30.0  # only newer credentials help, and those wake everyone who waits


@dataclass(frozen=True, slots=True)
class Wait:
    """No login is worth making before ``until``, unless newer credentials come first."""

    until: float


@dataclass(slots=True, eq=False, weakref_slot=True)
class Alternator:
    """Chooses the account for each login of one connector. It owns the pair."""

    pair: CredentialPair
    refused: Quarantine = field(default_factory=Quarantine)
    announcement: Announcement = field(default_factory=Announcement)
    expiry: Expiry = field(default_factory=Expiry)
    version: int = 1
    _local: Quarantine = field(default_factory=Quarantine)
    _full_until: dict[str, float] = field(default_factory=dict)
    _last: Parity | None = None

    def begin(self, now: float) -> Attempt | Wait:
        """The login that a connect starts with."""
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
        """The other account than this attempt's, or None when it is not worth a login either."""
        parity = attempt.parity.other
        credential = self.pair[parity]
        if credential and credential != attempt.credential and self._is_usable(credential, now):
            return self._take(parity, credential, now)
        return None

    def probe(self, now: float) -> Attempt | None:
        """A login that finds out, in the background, whether a refused account works again."""
        for parity in Parity:
            credential = self.pair[parity]
            if not credential or not self._is_refused(credential):
                continue
            if not self._steps_aside(parity, now) and self._claim_probe(credential, now):
                return Attempt(parity, credential, self.version, now, probe=True)
        return None

    def rejected(self, attempt: Attempt, verdict: Verdict, now: float) -> bool:
        """The server refused the attempt. True if its password was not known to be refused."""
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
        """The attempt logged in. Returns for how long its password had been refused, or None if it was not."""
        self._full_until.pop(attempt.credential.username, None)
        locally = self._local.accept(attempt, now)
        shared = self.refused.accept(attempt, now)
        return shared if locally is None else locally

    def abandoned(self, attempt: Attempt, now: float) -> None:
        """The attempt was inconclusive: an outage, or a cancellation. If it was a probe, another one is allowed now."""
        if attempt.probe:
            self.refused.release_probe(attempt, now)
            self._local.release_probe(attempt, now)

    def replace(self, pair: CredentialPair) -> None:
        """Use a newer pair. The alternation goes on where it was, and a password that changed is no longer refused."""
        self.version += pair != self.pair
        self.pair = pair  # also one that is equal: it may expire later

    def is_superseded(self, attempt: Attempt, now: float) -> bool:
        """Whether the account has another password by now, or is no longer one of the pair's.

        A newer password of an account that expires is a renewal: what was opened with the one before stays as good.
        """
        if attempt.credential == self.pair.last_resort:
            return not self.is_refused(now)  # it serves for as long as the others are refused, or have expired
        if self._is_current(attempt):
            return False
        account = self.account(attempt.credential.username)
        return account is None or account.expires_at is None

    def has_left(self, attempt: Attempt) -> bool:
        """Whether the pair no longer knows the account of this attempt at all."""
        return not self._is_current(attempt) and self.account(attempt.credential.username) is None

    def account(self, username: str) -> Credential | None:
        """The account of that name, as the pair has it now."""
        return next((account for account in self.pair.credentials() if account.username == username), None)

    def ends_at(self, attempt: Attempt) -> float:
        """When the sessions of this attempt's account end, in loop time: with its lease; infinity without one."""
        account = self.account(attempt.credential.username) or attempt.credential
        return self._end(account)

    def lasts_until(self, now: float) -> float:
        """When the sessions end of the account that lasts longest, among those that may be used."""
        usable = [account for account in (self.pair.odd, self.pair.even) if account and self._is_usable(account, now)]
        return max((self._end(account) for account in usable), default=-math.inf)

    def is_worthwhile(self, attempt: Attempt, now: float) -> bool:
        """Whether an attempt that had to wait is still to be made: what is newer, refused or expired is known now."""
        credential = attempt.credential
        if not self._is_current(attempt) or self.expiry.has_passed(credential, now):
            return False
        return attempt.probe or not self._is_refused(credential)

    def is_refused(self, now: float) -> bool:
        """Whether every account of the pair is refused, or expired at ``now``. A pending password does not count."""
        return not any(
            account and not self._is_refused(account) and not self.expiry.has_passed(account, now)
            for account in (self.pair.odd, self.pair.even)
        )

    def expires_in(self, credential: Credential, now: float) -> float | None:
        """Seconds until a credential expires, below 0 if it has; None if it does not."""
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
        """Whether the account is about to change or to end, and the other one works."""
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
        # A pending password is a chance only where both accounts are refused.
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
        # A probe may have found the account full, which does not say whether the refusal still stands.
        if not holders or self.expiry.has_passed(credential, now):
            return False
        if now < max(self.retry_at(credential), self._full_until.get(credential.username, now)):
            return False
        for quarantine in holders:
            quarantine.claim_probe(credential, now)
        return True
