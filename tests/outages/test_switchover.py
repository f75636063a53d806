"""A primary and its standby change roles under load: writes fail only while there is no writer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from support.pgbouncer import PgBouncer
from support.proxy import Proxy
from support.standby import Standby, rejoin

import aiopqr
from aiopqr.events import Event, NotWritable
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres

WORKERS = 8
PATIENCE = 1.0  # seconds after the first sign; after that, nobody may get a connection to the old server


class Cluster:
    """A primary, its standby, and a database with two accounts and a table on both."""

    def __init__(self, primary: EmbeddedPostgres, standby: Standby, postgres: RotatingPostgres) -> None:
        self.primary, self.standby, self.postgres = primary, standby, postgres
        self.gap = 0.0, 0.0  # the time without a writer

    async def switch_over(self, mode: str = "fast") -> None:
        """Shut the primary down, promote the standby, and bring the old primary back as its standby."""
        began = time.monotonic()
        await self.primary.halt(mode)
        await self.standby.promote()
        self.gap = began, time.monotonic()
        await asyncio.to_thread(rejoin, self.primary, self.standby)
        await self.primary.resume()

    def pool(self, *addresses: tuple[str, int], **options: Any) -> aiopqr.AlternatingPool:
        hosts = ",".join(f"{host}:{port}" for host, port in addresses)
        dsn = f"postgresql://{hosts}/{self.postgres.database}?target_session_attrs=read-write"
        defaults = {"credentials": self.postgres.source, "ssl": "disable", "min_size": 4, "max_size": 8}
        return aiopqr.create_pool(dsn, **{**defaults, **options})


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with EmbeddedPostgres() as primary:
        postgres = await RotatingPostgres.create(primary)
        await primary.execute(
            "create table writes (n int); grant insert on writes to public", database=postgres.database
        )
        async with Standby(primary) as standby:
            yield Cluster(primary, standby, postgres)


class Writers:
    """Tasks that write, and the result with each connection that they got: when, and the error or None."""

    def __init__(self, pool: aiopqr.AlternatingPool) -> None:
        self.pool = pool
        self.writes: list[tuple[float, Exception | None]] = []
        self._stop = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(self._work(), name=f"writer-{number}")
            try:
                yield
            finally:
                self._stop = True

    async def _work(self) -> None:
        while not self._stop:
            acquired = 0.0
            try:
                async with self.pool.acquire() as con:
                    acquired = time.monotonic()
                    await con.execute("insert into writes values (1)")
                self.writes.append((acquired, None))
            except Exception as exc:
                self.writes.append((acquired, exc))
            await asyncio.sleep(0.002)

    async def write(self, count: int = 50) -> None:
        """Wait until this many more writes have succeeded."""
        wanted = self.succeeded + count
        async with asyncio.timeout(30):
            while self.succeeded < wanted:
                await asyncio.sleep(0.01)

    @property
    def succeeded(self) -> int:
        return sum(error is None for _, error in self.writes)

    def failed_outside(self, gap: tuple[float, float]) -> list[tuple[float, Exception]]:
        """What failed although its connection was handed out well before the gap, or after it."""
        return [(at - gap[0], error) for at, error in self.writes if error and not gap[0] - 0.5 <= at <= gap[1] + 0.5]

    def misled_at(self) -> list[float]:
        """When connections were handed out that led to a server without writes."""
        return [at for at, error in self.writes if isinstance(error, asyncpg.ReadOnlySQLTransactionError)]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_with_two_hosts_writes_fail_only_while_there_is_no_writer(cluster: Cluster, mode: str) -> None:
    old, new = ((server.host, server.port) for server in (cluster.primary, cluster.standby))
    async with cluster.pool(old, new) as pool:
        writers = Writers(pool)
        async with writers.running():
            await writers.write()
            await cluster.switch_over(mode)
            await writers.write(200)
    assert writers.failed_outside(cluster.gap) == []
    assert writers.misled_at() == []


async def test_a_proxy_that_moves_late_leads_nobody_to_the_old_server(cluster: Cluster) -> None:
    async with (
        Proxy(cluster.primary.host, cluster.primary.port) as proxy,
        cluster.pool((proxy.host, proxy.port)) as pool,
    ):
        writers = Writers(pool)
        async with writers.running():
            await writers.write()
            await cluster.switch_over()
            accepted = proxy.accepted
            await proxy.wait_accepted(accepted + 2)  # the old server, now a standby, lets them in
            proxy.target = cluster.standby.host, cluster.standby.port
            await writers.write(200)
    assert writers.failed_outside(cluster.gap) == []
    assert writers.misled_at() == []


async def test_sessions_that_a_pooler_leads_to_a_standby_are_closed_within_a_second(cluster: Cluster) -> None:
    """PgBouncer keeps its clients when the route to the server changes: they see no login and no end of a session."""
    events: list[Event] = []
    async with (
        Proxy(cluster.primary.host, cluster.primary.port) as way,
        PgBouncer(cluster.primary, by_way_of=(way.host, way.port)) as bouncer,
        cluster.pool((bouncer.host, bouncer.port), listeners=[events.append], statement_cache_size=0) as pool,
    ):
        writers = Writers(pool)
        async with writers.running():
            await writers.write()
            way.target = cluster.standby.host, cluster.standby.port
            await way.cut()
            async with asyncio.timeout(10):
                while not writers.misled_at():
                    await asyncio.sleep(0.005)
            await asyncio.sleep(3 * PATIENCE)  # long enough to see that it has ended
            way.target = cluster.primary.host, cluster.primary.port
            await way.cut()
            await writers.write(200)
    misled = writers.misled_at()
    assert max(misled) - min(misled) < PATIENCE, [at - misled[0] for at in misled]
    assert any(isinstance(event, NotWritable) for event in events)
