"""What a fetch has to report besides that it was made: stages that begin and end, and credentials that have expired."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ..credentials import CredentialPair, Parity
from ..events import CredentialExpired, Event, SteppedAside, SteppedBack
from .announcement import Announcement, Ended
from .expiry import Expiry


def staging(name: str, announcement: Announcement, pair: CredentialPair, now: float) -> Iterator[Event]:
    """Stages that the store has opened or closed."""
    age = (datetime.now(UTC) - pair.pending_since).total_seconds() if pair.pending_since else 0.0
    for step in announcement.hear(pair, now, age):
        stage = step.stage if isinstance(step, Ended) else step
        account: dict[str, Any] = {"name": name, "parity": stage.parity, "username": stage.pending.username}
        if isinstance(step, Ended):
            yield SteppedBack(**account, after=now - stage.since, closed=step.closed)
        else:
            yield SteppedAside(**account, ends_in=stage.until - now)


class Expiries:
    """Reports each account whose credentials have expired without a newer one, once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: set[str] = set()

    def expired(self, pair: CredentialPair | None, expiry: Expiry, now: float) -> list[Event]:
        """What has expired since the last time."""
        accounts = [(p, a) for p in Parity if pair and (a := pair[p]) and expiry.has_passed(a, now)]
        known, self._known = self._known, {account.username for _, account in accounts}
        return [
            CredentialExpired(
                name=self._name, parity=parity, username=account.username, ago=max(now - expiry.at(account), 0.0)
            )
            for parity, account in accounts
            if account.username not in known
        ]
