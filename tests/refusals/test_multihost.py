"""Several hosts in one DSN: a refusal by one is no outage, and an outage of one is no refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.load import Load
from support.standby import Standby

import aiopqr
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres

from .conftest import hold


class Cluster:
    """A primary, its standby, and a database with two accounts on both."""

    def __init__(self, primary: EmbeddedPostgres, standby: Standby, postgres: RotatingPostgres) -> None:
        self.primary, self.standby, self.postgres = primary, standby, postgres

    def pool(self, *, standby_first: bool = True, **options: Any) -> aiopqr.AlternatingPool:
        hosts = [f"{server.host}:{server.port}" for server in (self.standby, self.primary)]
        hosts = hosts if standby_first else hosts[::-1]
        defaults = {"credentials": self.postgres.source, "ssl": "disable", "min_size": 0, "max_size": 4}
        dsn = f"postgresql://{','.join(hosts)}/{self.postgres.database}"
        return aiopqr.create_pool(dsn, target_session_attrs="primary", **{**defaults, **options})


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
    """It is asked first, and refuses what the primary would accept: the other account serves meanwhile."""
    await cluster.standby.execute("select pg_wal_replay_pause()")
    async with cluster.pool(refresh_interval=0) as pool:
        await cluster.postgres.rotate("odd")
        await pool.refresh()
        assert await hold(pool, 4) == [cluster.postgres.usernames[1]] * 4
    assert cluster.standby.failed_logins(username=cluster.postgres.usernames[0]) == 1
    await cluster.standby.execute("select pg_wal_replay_resume()")
