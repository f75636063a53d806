"""Dynamic roles, on a real OpenBao: two leases that overlap, renewed, replaced, and revoked at the end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from datetime import UTC, datetime

import pytest
from support.load import Load
from support.vault import closing

import aiopqr
from aiopqr import events
from aiopqr._refresh import feed_of
from aiopqr.errors import CredentialsRefused
from aiopqr.sources import VaultSource
from aiopqr.testing import RotatingPostgres, VaultDatabase
from aiopqr.testing.server import in_a_thread

SECONDS = 120.0 if os.environ.get("AIOPQR_PROOF") == "1" else 12.0
MARGIN = 2.0
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


async def test_a_source_of_two_pools_keeps_its_leases_until_the_last_of_them_is_closed(
    postgres: RotatingPostgres, vault_database: VaultDatabase
) -> None:
    await vault_database.dynamic_role("app", ttl="1h")
    shared, dsn = source(vault_database), f"{postgres.dsn}?sslmode=disable"
    async with aiopqr.create_pool(dsn, credentials=shared, min_size=1, max_size=1) as last:
        async with aiopqr.create_pool(dsn, credentials=shared, min_size=1, max_size=1) as first:
            assert await first.fetchval("SELECT 1") == 1
        assert len(await vault_database.leases("app")) == 2
        await last.expire_connections()
        assert await last.fetchval("SELECT 1") == 1
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


async def test_a_lease_whose_early_renewal_is_cut_short_is_replaced_before_it_ends(
    vault_database: VaultDatabase,
) -> None:
    await vault_database.dynamic_role("app", ttl="1h")
    async with closing(source(vault_database)) as own:
        own._client._look_up_at = math.inf
        await own.fetch()
        await vault_database.dynamic_role("app", ttl="4s")
        before = await own.fetch()
        assert before.refresh_in is not None
        assert before.refresh_in < 3.0
        await asyncio.sleep(before.refresh_in)
        after = await own.fetch()
        assert (after.odd == before.odd) != (after.even == before.even)


async def test_the_token_is_looked_up_without_renewing_the_leases(vault_database: VaultDatabase) -> None:
    await vault_database.dynamic_role("app", ttl="1h")
    async with closing(source(vault_database)) as own:
        own._client._look_up_at = time.monotonic() + 0.2  # otherwise that is some seconds later
        before = await own.fetch()
        assert before.refresh_in is not None
        assert before.refresh_in < 0.5
        await asyncio.sleep(before.refresh_in)
        after = await own.fetch()
        assert [c.expires_at for c in after.credentials()] == [c.expires_at for c in before.credentials()]


async def test_a_refresher_asks_only_when_a_lease_is_to_be_renewed(vault_database: VaultDatabase) -> None:
    await vault_database.dynamic_role("app", ttl="1h")
    own = source(vault_database)
    own._client._look_up_at = math.inf
    async with aiopqr.Refresher(own) as refresher:
        due_in = feed_of(refresher)._plan.due - asyncio.get_running_loop().time()
        assert 0.35 * 3600 < due_in < 0.5 * 3600


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
    assert "leases will expire" in warned[-1]


async def orphans(postgres: RotatingPostgres, margin: float) -> int:
    """How many sessions exist both now and ``margin`` seconds later, although their role is gone."""
    sql = (
        "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND usesysid IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM pg_roles WHERE oid = usesysid)"
    )
    before = {row["pid"] for row in await postgres.server.execute(sql, postgres.database)}
    await asyncio.sleep(margin)
    return len(before & {row["pid"] for row in await postgres.server.execute(sql, postgres.database)})


@pytest.mark.proof
@pytest.mark.timeout(300)
async def test_under_load_leases_come_and_go_unnoticed_and_end_their_sessions(
    postgres: RotatingPostgres, vault_database: VaultDatabase
) -> None:
    await vault_database.dynamic_role("app", ttl="6s", max_ttl="15s")
    found = 0
    async with (
        aiopqr.create_pool(
            f"{postgres.dsn}?sslmode=disable", credentials=source(vault_database), min_size=4, max_size=4
        ) as pool,
        Load(pool).running(6) as load,
    ):
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            found += await orphans(postgres, MARGIN)
    assert load.unexpected == []
    assert load.served > 100
    assert found == 0
    assert await vault_database.leases("app") == []
    await eventually_no_role_is_left(postgres)


async def eventually_no_role_is_left(postgres: RotatingPostgres) -> None:
    """Revoked leases' roles are dropped by Vault, in the background."""
    async with asyncio.timeout(20.0):
        while await postgres.server.fetchval(
            "SELECT count(*) FROM pg_roles WHERE pg_has_role(oid, $1, 'member') AND rolname LIKE 'v-%'", postgres.owner
        ):
            await asyncio.sleep(0.1)


@pytest.mark.timeout(180)
async def test_where_vault_stays_away_longer_than_a_lease_the_error_says_so_and_vault_back_ends_it(
    postgres: RotatingPostgres, vault_database: VaultDatabase
) -> None:
    heard: list[events.Event] = []
    await vault_database.dynamic_role("app", ttl="4s", max_ttl="1h")
    async with aiopqr.create_pool(
        f"{postgres.dsn}?sslmode=disable",
        credentials=source(vault_database, timeout=0.5),
        min_size=2,
        max_size=2,
        timeout=1.0,  # of a connect
        listeners=[heard.append],
    ) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        await in_a_thread(vault_database.vault.kill)
        try:
            await asyncio.sleep(5.0)
            with pytest.raises(CredentialsRefused, match="expired"):
                await pool.fetchval("SELECT 1")
            assert any(isinstance(event, events.RefreshFailed) for event in heard)
        finally:
            await in_a_thread(vault_database.vault.resume)
        async with asyncio.timeout(60.0):
            while True:
                try:
                    assert await pool.fetchval("SELECT 1") == 1
                    break
                except (CredentialsRefused, TimeoutError):
                    await asyncio.sleep(0.1)
