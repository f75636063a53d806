"""A KV engine of a real OpenBao as a store: each change is exclusive, and keeps what is not its own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.rotation.errors import StoreConflict, StoreError
from aiopqr.rotation.stores.store import SecretStore, StoredSecret
from aiopqr.rotation.stores.vault import VaultStore
from aiopqr.sources import VaultSource
from aiopqr.testing import Vault

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
DOCUMENT = {
    "engine": "postgres",
    "odd_username": "app_odd",
    "odd_password": "odd-1",
    "port": 5432,
    "even_username": "app_even",
    "even_password": "even-1",
    "active_credential": "even",
    "even_changed_at": "2025-03-01T11:00:00+00:00",
}
NEW = Credential("app_odd", "odd-2")


@pytest.fixture
async def store(vault: Vault) -> AsyncIterator[VaultStore]:
    path = f"orders/{secrets.token_hex(4)}"
    await vault.put(path, DOCUMENT)
    async with VaultStore(path, **vault.options) as store:
        yield store


async def content(vault: Vault, store: VaultStore) -> dict[str, Any]:
    found: dict[str, Any] = (await vault.ask("GET", f"secret/data/{store._path}"))["data"]["data"]
    return found


async def changed(store: VaultStore, secret: StoredSecret, change: str) -> StoredSecret:
    if change == "promote":
        return await store.promote(secret, changed_at=NOON)
    return await (store.abandon(secret) if change == "abandon" else store.stage(secret, NEW))


async def test_a_password_is_staged_and_promoted_and_all_else_stays(vault: Vault, store: VaultStore) -> None:
    assert isinstance(store, SecretStore)
    before = await store.read()
    assert before.pair.odd == Credential("app_odd", "odd-1")
    assert (before.odd_changed_at, before.even_changed_at) == (None, NOON - timedelta(hours=1))
    staged = await store.stage(before, NEW)
    assert staged == await store.read()
    source = VaultSource.kv(store._path, start_spread=0, **vault.options)
    fetched = await source.fetch()
    assert (fetched.odd, fetched.pending) == (Credential("app_odd", "odd-1"), NEW)
    promoted = await store.promote(staged, changed_at=NOON)
    assert promoted == await store.read()
    assert (promoted.pair.odd, promoted.pair.active, promoted.pair.pending) == (NEW, Parity.ODD, None)
    assert (promoted.odd_changed_at, promoted.even_changed_at) == (NOON, NOON - timedelta(hours=1))
    assert (await source.fetch()).odd == NEW
    after = await content(vault, store)
    assert (after["engine"], after["port"]) == ("postgres", 5432)
    await source.aclose()


async def test_who_may_write_is_known_without_writing(vault: Vault, store: VaultStore) -> None:
    before = await store.read()
    await store.check_writable()
    policy = 'path "secret/data/*" { capabilities = ["read", "update"] }'
    for options in ({}, {"no_default_policy": True}):
        token = await vault.token_for(policy, **options)
        async with VaultStore(store._path, **{**vault.options, "token": token}) as writer:
            await writer.check_writable()
    assert await store.read() == before


async def test_an_abandoned_stage_leaves_no_trace(vault: Vault, store: VaultStore) -> None:
    await store.abandon(await store.stage(await store.read(), NEW))
    assert await content(vault, store) == DOCUMENT


async def test_where_no_key_tells_when_a_password_changed_the_versions_time_does(
    vault: Vault, store: VaultStore
) -> None:
    await vault.put(store._path, {key: value for key, value in DOCUMENT.items() if not key.endswith("_at")})
    secret = await store.read()
    for parity in Parity:
        at = secret.changed_at(parity)
        assert at is not None
        assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("change", ["stage", "promote", "abandon"])
async def test_a_change_decided_on_an_older_revision_is_refused_and_changes_nothing(
    vault: Vault, store: VaultStore, change: str
) -> None:
    secret = await store.read()
    if change != "stage":
        secret = await store.stage(secret, NEW)
    await vault.put(store._path, now := {**await content(vault, store), "even_password": "even-2"})
    with pytest.raises(StoreConflict, match="has changed since"):
        await changed(store, secret, change)
    assert await content(vault, store) == now


async def test_of_two_changes_at_once_one_is_refused_by_vault(vault: Vault, store: VaultStore) -> None:
    secret = await store.read()
    others = [VaultStore(store._path, **vault.options) for _ in range(4)]
    found = await asyncio.gather(*(other.stage(secret, NEW) for other in others), return_exceptions=True)
    assert sum(isinstance(one, StoredSecret) for one in found) == 1
    assert sum(isinstance(one, StoreConflict) for one in found) == 3
    for other in others:
        await other.aclose()


async def test_a_first_secret_is_made_and_never_over_another(vault: Vault, store: VaultStore) -> None:
    pair = CredentialPair(Credential("one", "1"), Credential("two", "2"))
    with pytest.raises(StoreConflict, match="exists"):
        await store.create(pair, changed_at=NOON)
    async with VaultStore(f"{store._path}-new", **vault.options) as new:
        made = await new.create(pair, changed_at=NOON)
        assert made == await new.read()
        assert (made.pair, made.odd_changed_at) == (pair, NOON)
        with pytest.raises(StoreConflict, match="exists"):
            await new.create(pair, changed_at=NOON)


async def test_what_goes_wrong_is_told_without_a_value(vault: Vault, store: VaultStore) -> None:
    token = await vault.token_for('path "secret/data/*" { capabilities = ["read"] }')
    async with VaultStore(store._path, **{**vault.options, "token": token}) as reader:
        secret = await reader.read()
        with pytest.raises(StoreError, match="the token may not write it: add path"):
            await reader.check_writable()
        with pytest.raises(StoreError, match=r"POST secret/data/.*policies do not allow") as caught:
            await reader.stage(secret, NEW)
        assert "odd-2" not in str(caught.value)
    await vault.put(store._path, {"odd_username": "hunter2"})
    with pytest.raises(StoreError, match="odd_password is missing") as caught:
        await store.read()
    assert "hunter2" not in str(caught.value)
    async with VaultStore("no/such", **vault.options) as missing:
        with pytest.raises(StoreError, match="there is nothing at this path"):
            await missing.read()
