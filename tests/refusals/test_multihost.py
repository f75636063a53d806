"""Several hosts in one DSN: a refusal by one is not an outage, and an outage of one is not a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from support.load import Load
from support.proxy import Proxy
from support.standby import Standby

import aiopqr
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres

from .conftest import eventually, hold


class Cluster:
    """A primary, its standby, and a database with two accounts on both."""

    def __init__(self, primary: EmbeddedPostgres, standby: Standby, postgres: RotatingPostgres) -> None:
        self.primary, self.standby, self.postgres = primary, standby, postgres

    def pool(self, *, standby_first: bool = True, **options: Any) -> aiopqr.AlternatingPool:
        hosts = [f"{server.host}:{server.port}" for server in (self.standby, self.primary)]
        hosts = hosts if standby_first else hosts[::-1]
        defaults = {"credentials": self.postgres.source, "ssl": "disable", "min_size": 0, "max_size": 4}
        dsn = f"postgresql://{','.join(hosts)}/{self.postgres.database}"
        return aiopqr.create_pool(**{"dsn": dsn, "target_session_attrs": "primary", **defaults, **options})


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with EmbeddedPostgres() as primary:
        postgres = await RotatingPostgres.create(primary)
        async with Standby(primary) as standby:
            yield Cluster(primary, standby, postgres)


async def test_a_promotion_under_load_fails_only_queries_in_flight(cluster: Cluster) -> None:
    async with cluster.pool(min_size=4) as pool:
        async with Load(pool).running(8) as load:
            await load.serves()
            async with load.cuts.cutting():
                await cluster.primary.halt("immediate")
            await cluster.standby.promote()
            await load.serves()
        stats = pool.stats()
        async with pool.acquire() as con:
            assert await con.fetchval("select current_setting('port')::int") == cluster.standby.port
            assert not await con.fetchval("select pg_is_in_recovery()")
    assert load.unexpected == []
    assert len(load.failures) <= 4
    assert stats.fallbacks == stats.accounts["odd"].refused == stats.accounts["even"].refused == 0
    assert cluster.postgres.source.fetches == 1


@pytest.mark.parametrize("standby_first", [True, False])
async def test_a_refusal_by_one_host_while_the_other_is_down_is_a_refusal(
    cluster: Cluster, standby_first: bool
) -> None:
    await cluster.standby.halt("immediate")
    await cluster.postgres.rotate("odd", store_delay=None)
    async with cluster.pool(standby_first=standby_first) as pool:
        assert await hold(pool, 4) == [cluster.postgres.usernames[1]] * 4
        stats = pool.stats()
    assert (stats.outages, stats.accounts["odd"].refused) == (0, 1)


async def test_all_hosts_down_is_an_outage_that_is_waited_out(cluster: Cluster) -> None:
    await cluster.standby.halt("immediate")
    await cluster.primary.halt("immediate")
    async with cluster.pool() as pool:
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        while not pool.stats().outages:
            await asyncio.sleep(0.005)
        await cluster.primary.resume()
        assert await waiting == 1
        assert pool.stats().fallbacks == 0


async def test_a_standby_that_does_not_know_the_new_password_yet_costs_no_error(cluster: Cluster) -> None:
    """It is asked first, and refuses what the primary would accept: the other account is used meanwhile."""
    await cluster.standby.execute("select pg_wal_replay_pause()")
    async with cluster.pool(refresh_interval=0) as pool:
        await cluster.postgres.rotate("odd")
        await pool.refresh()
        assert await hold(pool, 4) == [cluster.postgres.usernames[1]] * 4
    assert cluster.standby.failed_logins(username=cluster.postgres.usernames[0]) == 1
    await cluster.standby.execute("select pg_wal_replay_resume()")


IS_STANDBY = "select pg_is_in_recovery()"


async def test_a_preferred_standby_is_found_without_a_socket_too_many(cluster: Cluster) -> None:
    primary, standby = (Proxy(server.host, server.port) for server in (cluster.primary, cluster.standby))
    async with primary, standby:
        standby.blackhole()
        dsn = f"postgresql://{primary.host}:{primary.port},{standby.host}:{standby.port}/{cluster.postgres.database}"
        async with cluster.pool(dsn=dsn, target_session_attrs="prefer-standby") as pool:
            asked = asyncio.create_task(pool.fetchval(IS_STANDBY))
            await standby.wait_accepted(1)
            await eventually(lambda: primary.accepted == 1 and primary.connections == 0)
            standby.heal()
            assert await asked


async def test_where_the_preferred_standby_is_down_the_primary_serves(cluster: Cluster) -> None:
    await cluster.standby.halt("immediate")
    async with cluster.pool(standby_first=False, target_session_attrs="prefer-standby") as pool:
        assert not await pool.fetchval(IS_STANDBY)


async def test_where_the_preferred_standby_refuses_the_account_the_primary_serves(cluster: Cluster) -> None:
    """A lagging standby does not know the new password yet, and here there is no other account."""
    await cluster.standby.execute("select pg_wal_replay_pause()")
    await cluster.postgres.rotate("odd")
    cluster.postgres.source.pair = replace(cluster.postgres.source.pair, even=None)
    async with cluster.pool(standby_first=False, target_session_attrs="prefer-standby") as pool:
        assert not await pool.fetchval(IS_STANDBY)
    await cluster.standby.execute("select pg_wal_replay_resume()")
