"""What the versions of a pair's secret mean to a rotator: values in, a stored secret out.

The store and the rotation Lambda must agree on it. None of it needs AWS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ...credentials import Credential, CredentialPair
from ...errors import InvalidSecret
from ...sources.aws.layouts import staged_in
from ..errors import StoreConflict, StoreError
from .document import promoted, read_document
from .store import StoredSecret


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a secret."""

    id: str
    entries: Mapping[str, Any] = field(repr=False)
    created: datetime | None = None
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A secret's stages at one moment. ``pending_id`` has AWSPENDING, ``pending`` is that version if it says anything.

    It says nothing before it has a value, and when AWSCURRENT is on it too. ``rotated`` is when the service last ended
    a rotation.
    """

    current: Version
    pending_id: str | None = None
    pending: Version | None = None
    rotated: datetime | None = None

    @property
    def revision(self) -> str:
        return f"{self.current.id} {self.pending_id} {self.pending is not None}"


def stored(snapshot: Snapshot, secret_id: str) -> StoredSecret:
    """What the stages mean. Raises :class:`StoreError` for an AWSPENDING that is not of this pair."""
    entries = snapshot.current.entries
    if "pending_username" in entries or "pending_password" in entries:
        raise StoreError(f"secret {secret_id!r} has a staged password among its keys, as a file has: finish that first")
    secret = _dated(read_document(entries, snapshot.revision, unknown=snapshot.current.created), snapshot.rotated)
    if snapshot.pending is None:
        return secret
    try:
        newer = read_document(snapshot.pending.entries, "")
    except InvalidSecret as exc:
        raise StoreError(f"AWSPENDING of secret {secret_id!r}: {exc}: take the label off, if it is of no use") from None
    if _names(newer.pair) != _names(secret.pair):
        raise StoreError(f"AWSPENDING of secret {secret_id!r} names other accounts: take the label off")
    changed = staged_in(secret.pair, newer.pair)
    if not changed:
        return secret
    # One, unless somebody has staged both by hand; then the one that says it is newer.
    parity = next((p for p in changed if _later(newer.changed_at(p), secret.changed_at(p))), changed[0])
    since = newer.changed_at(parity)
    return dataclasses.replace(
        secret,
        pair=dataclasses.replace(secret.pair, pending=newer.pair[parity]),
        staged_at=since if _later(since, secret.changed_at(parity)) else snapshot.pending.created,
    )


def staged_entries(snapshot: Snapshot, secret: StoredSecret, credential: Credential, now: datetime) -> dict[str, Any]:
    """AWSCURRENT's entries with the new password, as they are to be once the account is promoted."""
    if secret.pair.pending is not None:
        raise StoreConflict(f"a new password of {secret.pair.pending.username!r} is staged already")
    pair = dataclasses.replace(secret.pair, pending=credential)
    return promoted(snapshot.current.entries, dataclasses.replace(secret, pair=pair), now)


def _dated(secret: StoredSecret, rotated: datetime | None) -> StoredSecret:
    """The Lambda dates a password when it stages it; the service knows when that rotation ended, which counts."""
    odd, even = secret.odd_changed_at, secret.even_changed_at
    newest = max((time for time in (odd, even) if time), default=None)
    if newest is None or not _later(rotated, newest):
        return secret
    return dataclasses.replace(
        secret,
        odd_changed_at=rotated if odd == newest else odd,
        even_changed_at=rotated if even == newest else even,
    )


def _later(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and (other is None or one > other)


def _names(pair: CredentialPair) -> list[str | None]:
    return [account.username if account else None for account in (pair.odd, pair.even)]
