"""Interprets the versions of a pair's secret: takes their values, and returns a stored secret.

The store and the rotation Lambda share this code, since they must agree. None of it needs AWS.
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
    """A secret's stages at one moment. ``pending_id`` is the version with AWSPENDING, and ``pending`` its contents.

    ``pending`` is None if the version has no value yet, or has AWSCURRENT as well. ``rotated`` is when AWS last
    finished a rotation.
    """

    current: Version
    pending_id: str | None = None
    pending: Version | None = None
    rotated: datetime | None = None

    @property
    def revision(self) -> str:
        return f"{self.current.id} {self.pending_id} {self.pending is not None}"


def stored(snapshot: Snapshot, secret_id: str) -> StoredSecret:
    """Interpret the stages. Raises :class:`StoreError` if AWSPENDING does not belong to this pair."""
    entries = snapshot.current.entries
    if "pending_username" in entries or "pending_password" in entries:
        raise StoreError(f"secret {secret_id!r} has a staged password in its keys, as a file would: finish that first")
    secret = _dated(read_document(entries, snapshot.revision, unknown=snapshot.current.created), snapshot.rotated)
    if snapshot.pending is None:
        return secret
    try:
        newer = read_document(snapshot.pending.entries, "")
    except InvalidSecret as exc:
        raise StoreError(f"AWSPENDING of secret {secret_id!r}: {exc}: remove the label if it is of no use") from None
    if _names(newer.pair) != _names(secret.pair):
        raise StoreError(f"AWSPENDING of secret {secret_id!r} names other accounts: remove the label")
    changed = staged_in(secret.pair, newer.pair)
    if not changed:
        return secret
    # It is one account, unless somebody has staged both by hand. Then take the one with a newer date.
    parity = next((p for p in changed if _later(newer.changed_at(p), secret.changed_at(p))), changed[0])
    since = newer.changed_at(parity)
    return dataclasses.replace(
        secret,
        pair=dataclasses.replace(secret.pair, pending=newer.pair[parity]),
        staged_at=since if _later(since, secret.changed_at(parity)) else snapshot.pending.created,
    )


def staged_entries(snapshot: Snapshot, secret: StoredSecret, credential: Credential, now: datetime) -> dict[str, Any]:
    """The entries of a new version for AWSPENDING: AWSCURRENT's with the new password, as if already promoted."""
    if secret.pair.pending is not None:
        raise StoreConflict(f"a new password of {secret.pair.pending.username!r} is already staged")
    pair = dataclasses.replace(secret.pair, pending=credential)
    return promoted(snapshot.current.entries, dataclasses.replace(secret, pair=pair), now)


def _dated(secret: StoredSecret, rotated: datetime | None) -> StoredSecret:
    """Correct the newest change time: the Lambda dates a password when it stages it, but the rotation's end counts."""
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
