"""The keys of a stored secret, and how each step of a rotation changes them.

Every store keeps the same document. The functions are pure: they take mappings and return mappings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ...credentials import Credential, CredentialPair, Parity, parse_time
from ..errors import StoreConflict, StoreError
from .store import OWN_KEYS, StoredSecret

_PENDING_KEYS = ("pending_username", "pending_password", "pending_staged_at")


def read_document(entries: Mapping[str, Any], revision: str, *, unknown: datetime | None = None) -> StoredSecret:
    """Read the secret in ``entries``. If there are no change times, ``unknown`` is used for both accounts.

    Raises :class:`InvalidSecret`.
    """
    times = {key: parse_time(entries.get(f"{key}_changed_at")) for key in ("odd", "even")}
    if times["odd"] is times["even"] is None:
        times = {"odd": unknown, "even": unknown}
    return StoredSecret(
        pair=CredentialPair.from_secret(entries),
        revision=revision,
        odd_changed_at=times["odd"],
        even_changed_at=times["even"],
        staged_at=parse_time(entries.get("pending_staged_at")) if "pending_username" in entries else None,
        other={key: value for key, value in entries.items() if key not in OWN_KEYS},
    )


def staged(entries: Mapping[str, Any], secret: StoredSecret, credential: Credential, now: datetime) -> dict[str, Any]:
    """``entries`` with ``credential`` as the staged password."""
    if secret.pair.pending is not None:
        raise StoreConflict(f"a new password of {secret.pair.pending.username!r} is already staged")
    dataclasses.replace(secret.pair, pending=credential)  # raises if the account is not in the pair
    pending = (credential.username, credential.password.reveal(), format_time(now))
    return {**entries, **dict(zip(_PENDING_KEYS, pending, strict=True))}


def promoted(entries: Mapping[str, Any], secret: StoredSecret, changed_at: datetime) -> dict[str, Any]:
    """``entries`` with the staged password as the account's current one, and the account active."""
    pending, parity = secret.pair.pending, secret.pair.pending_parity
    if pending is None or parity is None:
        raise StoreConflict("no new password is staged")
    times = {
        f"{account}_changed_at": format_time(changed)
        for account in Parity  # for both, since the other one's time may not have come from the entries
        if (changed := changed_at if account is parity else secret.changed_at(account)) is not None
    }
    own = {
        f"{parity}_username": pending.username,
        f"{parity}_password": pending.password.reveal(),
        "active_credential": str(parity),
    }
    return {**abandoned(entries, secret), **own, **times}


def abandoned(entries: Mapping[str, Any], secret: StoredSecret) -> dict[str, Any]:
    """``entries`` without the staged password."""
    if secret.pair.pending is None:
        raise StoreConflict("no new password is staged")
    return {key: value for key, value in entries.items() if key not in _PENDING_KEYS}


def new_document(pair: CredentialPair, changed_at: datetime) -> dict[str, Any]:
    """The document of a new pair. ``changed_at`` is when both accounts got their passwords."""
    if pair.odd is None or pair.even is None or pair.pending is not None:
        raise StoreError("a new secret needs both accounts, and must have nothing staged")
    return {
        "odd_username": pair.odd.username,
        "odd_password": pair.odd.password.reveal(),
        "even_username": pair.even.username,
        "even_password": pair.even.password.reveal(),
        "active_credential": str(pair.active),
        "odd_changed_at": format_time(changed_at),
        "even_changed_at": format_time(changed_at),
    }


def format_time(time: datetime) -> str:
    """Format a time for a secret: ISO 8601, UTC."""
    return time.astimezone(UTC).isoformat()
