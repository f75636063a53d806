"""Dynamic roles, on a real OpenBao: two leases that overlap, renewed, replaced, and revoked at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime

import pytest
from support.vault import closing

from aiopqr.sources import VaultSource
from aiopqr.testing import VaultDatabase

READ = 'path "{mount}/creds/*" {{ capabilities = ["read"] }}'


def source(database: VaultDatabase, **options: object) -> VaultSource:
    return VaultSource.dynamic("app", **{"start_spread": 0, **database.options, **options})


async def test_two_leases_are_a_pair_that_ends_its_sessions_and_are_revoked_at_the_end(
    vault_database: VaultDatabase,
) -> None:
    await vault_database.dynamic_role("app", ttl="1h")
    async with closing(source(vault_database)) as own:
        pair = await own.fetch()
        assert pair == await own.fetch()
        for account in (pair.odd, pair.even):
            assert account is not None
            assert account.ends_sessions
            assert account.expires_at is not None
            assert 3590 < (account.expires_at - datetime.now(UTC)).total_seconds() <= 3600
        assert len(await vault_database.leases("app")) == 2
    assert await vault_database.leases("app") == []


async def test_leases_are_renewed_and_then_replaced_one_at_a_time(vault_database: VaultDatabase) -> None:
    await vault_database.dynamic_role("app", ttl="3s", max_ttl="5s")
    begun = time.monotonic()
    async with closing(source(vault_database)) as own:
        pairs = [await own.fetch()]
        while time.monotonic() - begun < 9.0:
            assert pairs[-1].refresh_in is not None
            await asyncio.sleep(pairs[-1].refresh_in)
            pair = await own.fetch()
            now = datetime.now(UTC)
            for account in (pair.odd, pair.even):
                assert account is not None
                assert account.expires_at is not None
                assert account.expires_at > now
            if pair != pairs[-1]:
                assert (pair.odd == pairs[-1].odd) != (pair.even == pairs[-1].even)
                assert time.monotonic() - begun > 2.0
                pairs.append(pair)
            pairs[-1] = pair
    assert 3 <= len(pairs) <= 9
    assert await vault_database.leases("app") == []


async def test_a_lease_that_somebody_revoked_is_replaced_when_a_fetch_is_asked_for(
    vault_database: VaultDatabase,
) -> None:
    await vault_database.dynamic_role("app", ttl="1h")
    async with closing(source(vault_database)) as own:
        before = await own.fetch()
        lease, other = await vault_database.leases("app")
        await vault_database.vault.ask("POST", "sys/leases/revoke", lease_id=lease, sync=True)
        after = await own.fetch()
        assert (after.odd == before.odd) != (after.even == before.even)
        assert other in await vault_database.leases("app")


async def test_without_the_right_to_renew_leases_are_replaced(
    vault_database: VaultDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    await vault_database.dynamic_role("app", ttl="2s")
    token = await vault_database.vault.token_for(READ.format(mount=vault_database.mount), no_default_policy=True)
    own = source(vault_database, token=token)
    first = await own.fetch()
    assert first.refresh_in is not None
    await asyncio.sleep(first.refresh_in)
    second = await own.fetch()
    assert (second.odd == first.odd) != (second.even == first.even)
    await own.aclose()
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text for text in warned if "Allow update on sys/leases/renew" in text]
    assert "leases end by themselves" in warned[-1]
