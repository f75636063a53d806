"""When credentials expire: a state machine without a clock.

Sources give wall-clock times. They are converted to loop time as soon as they are fetched, so setting the wall clock
later changes nothing. Only digests are kept, never passwords.
"""

from __future__ import annotations

import math
from datetime import datetime

from ..credentials import Credential, CredentialPair
from .quarantine import Digest, digest

_KEPT = 3600.0  # how long, in seconds, an expired credential is remembered after it has left the store


class Expiry:
    """When each credential expires. Alternators that share a refresher share it."""

    def __init__(self) -> None:
        self._known: dict[Digest, tuple[datetime, float]] = {}

    def update(self, pair: CredentialPair, now: float, utc: datetime) -> None:
        """Note when the credentials that were just fetched expire."""
        kept = {key: known for key, known in self._known.items() if known[1] + _KEPT > now}
        for credential in pair.credentials():
            key, known = digest(credential), self._known.get(digest(credential))
            if credential.expires_at is None:
                kept.pop(key, None)
            elif known is None or known[0] != credential.expires_at:
                kept[key] = credential.expires_at, now + (credential.expires_at - utc).total_seconds()
            else:
                kept[key] = known  # however long ago it expired
        self._known = kept

    def at(self, credential: Credential) -> float:
        """When a credential expires, in loop time; infinity if it does not."""
        if not self._known:
            return math.inf
        known = self._known.get(digest(credential))
        return known[1] if known else math.inf

    def has_passed(self, credential: Credential, now: float) -> bool:
        return now >= self.at(credential)

    def remaining(self, pair: CredentialPair, now: float) -> float | None:
        """Seconds until the next account of the pair expires, or None if none will."""
        ends = [self.at(account) for account in (pair.odd, pair.even) if account]
        return min((end - now for end in ends if now < end < math.inf), default=None)
