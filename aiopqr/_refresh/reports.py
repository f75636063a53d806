"""The events to report after a fetch: stages that begin or end, what a newer pair changes, and what has expired."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ..credentials import CredentialPair, Parity
from ..events import (
    CredentialExpired,
    CredentialsRenewed,
    Event,
    PairDegraded,
    Refreshed,
    SteppedAside,
    SteppedBack,
)
from .announcement import Announcement, Ended
from .expiry import Expiry


def staging(name: str, announcement: Announcement, pair: CredentialPair, now: float) -> Iterator[Event]:
    """Events for stages that the store has opened or closed."""
    age = (datetime.now(UTC) - pair.pending_since).total_seconds() if pair.pending_since else 0.0
    for step in announcement.update(pair, now, age):
        stage = step.stage if isinstance(step, Ended) else step
        account: dict[str, Any] = {"name": name, "parity": stage.parity, "username": stage.pending.username}
        if isinstance(step, Ended):
            yield SteppedBack(**account, after=now - stage.since, closed=step.closed)
        else:
            yield SteppedAside(**account, ends_in=stage.until - now)


def has_changed(before: CredentialPair, pair: CredentialPair) -> bool:
    """Whether a newer pair has different credentials, or the same ones with a different expiry."""
    return pair != before or _ends(pair) != _ends(before)


def news(name: str, before: CredentialPair | None, pair: CredentialPair, expires_in: float | None) -> Iterator[Event]:
    """Events for the changes from one pair to the next. ``expires_in`` is the time until the first expiry, or None."""
    if pair == before:
        if _ends(pair) != _ends(before):
            yield CredentialsRenewed(name=name, expires_in=expires_in)
        return
    if pair.missing and (before is None or before.missing is None):
        yield PairDegraded(name=name, missing=pair.missing)
    if before is not None:
        changed = tuple(parity for parity in Parity if pair[parity] != before[parity])
        yield Refreshed(name=name, changed=changed, pending=pair.pending_parity)


def _ends(pair: CredentialPair) -> list[datetime | None]:
    return [credential.expires_at for credential in pair.credentials()]


class Expiries:
    """Reports once for each account that its credentials have expired and that there are no newer ones."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: set[str] = set()

    def expired(self, pair: CredentialPair | None, expiry: Expiry, now: float) -> list[Event]:
        """Events for accounts that have expired since the last call."""
        accounts = [(p, a) for p in Parity if pair and (a := pair[p]) and expiry.has_passed(a, now)]
        known, self._known = self._known, {account.username for _, account in accounts}
        return [
            CredentialExpired(
                name=self._name, parity=parity, username=account.username, ago=max(now - expiry.at(account), 0.0)
            )
            for parity, account in accounts
            if account.username not in known
        ]
