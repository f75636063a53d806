"""Two hosts on separate networks, one of which is cut off: no server on the loopback interface can show this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from support.load import Load

import aiopqr
from aiopqr.testing import ContainerPostgres

from .conftest import eventually


@dataclass
class Hosts:
    """Two servers with the same accounts, like a primary and the server that takes over from it."""

    first: ContainerPostgres
    second: ContainerPostgres
    pair: aiopqr.CredentialPair

    @property
    def dsn(self) -> str:
        places = ",".join(f"{host.host}:{host.port}" for host in (self.first, self.second))
        return f"postgresql://{places}/orders?sslmode=disable"


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    first, second = (ContainerPostgres(own_network=True) for _ in range(2))
    async with first, second:
        pair = await first.create_accounts(database="orders")
        await second.create_accounts(database="orders")
        await second.set_passwords(*pair.credentials())
        yield Hosts(first, second, pair)


async def test_a_host_that_is_cut_off_under_load_costs_only_the_queries_in_flight(hosts: Hosts) -> None:
    pool = aiopqr.create_pool(hosts.dsn, credentials=hosts.pair, min_size=4, max_size=4, command_timeout=5.0)
    async with pool, Load(pool).running(8) as load:
        await load.serves()
        assert await pool.fetchval("select inet_server_port()") == 5432
        assert len(await hosts.first.sessions(database="orders")) == 4
        async with load.cuts.cutting():
            await hosts.first.cut_off()
            await load.serves()
        await eventually(lambda: pool.stats().size == 4, within=30.0)
        assert len(await hosts.second.sessions(database="orders")) == 4

        # Back on the network, it is used again: a new connection goes to the first host that answers.
        await hosts.first.join()
        await hosts.first.terminate()
        async with load.cuts.cutting():
            await hosts.second.cut_off()
            await load.serves()
        await eventually(lambda: pool.stats().size == 4, within=30.0)
        assert len(await hosts.first.sessions(database="orders")) == 4
        stats = pool.stats()
    assert load.unexpected == []
    assert len(load.failures) <= 16
    assert all(account.refused == 0 for account in stats.accounts.values())


async def test_a_pool_waits_out_a_network_that_is_gone_altogether(hosts: Hosts) -> None:
    async with aiopqr.create_pool(hosts.dsn, credentials=hosts.pair, min_size=1, max_size=2) as pool:
        await asyncio.gather(hosts.first.cut_off(), hosts.second.cut_off())
        waiting = asyncio.create_task(pool.fetchval("select 1", timeout=30.0))
        await asyncio.sleep(0.5)
        await hosts.second.join()
        assert await waiting == 1
