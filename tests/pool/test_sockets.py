"""Whatever happens at the same time, a pool never has more than ``max_size + 1`` sockets, logins in flight included."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from support.proxy import Proxy

import aiopqr
from aiopqr.testing import RotatingPostgres

SECONDS = 60.0 if os.environ.get("AIOPQR_PROOF") else 6.0
MAX_SIZE = 4
TABLE = Path("/proc/net/tcp")
OPEN = ("01", "02", "08")  # established, being opened, closed by the other side only


def sockets_to(ports: set[str]) -> int:
    """How many sockets are open whose other end is one of these ports.

    Reading the table is not atomic: a socket may be listed twice when others come and go meanwhile.
    """
    lines = (line.split() for line in TABLE.read_text().splitlines()[1:])
    return len({(near, far) for _, near, far, state, *_ in lines if far.rpartition(":")[2] in ports and state in OPEN})


class Faults:
    """Slow logins, flows that are swallowed or cut, and everything that a pool is asked to do about its connections."""

    def __init__(self, pool: aiopqr.AlternatingPool, postgres: RotatingPostgres, ways: list[Proxy]) -> None:
        self.pool, self.postgres, self.ways = pool, postgres, ways
        self.random = random.Random()

    async def run(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        kinds: list[Callable[[Proxy], Awaitable[object]]] = [
            self.slow, self.swallow, self.refuse, self.cut, self.rotate, self.expire, self.give_up,
        ]  # fmt: skip
        while loop.time() < until:
            await self.random.choice(kinds)(self.random.choice(self.ways))

    async def while_it_lasts(self) -> None:
        await asyncio.sleep(self.random.uniform(0.1, 1.5))

    async def slow(self, way: Proxy) -> None:
        way.delay = self.random.uniform(0.05, 0.4)
        await self.while_it_lasts()
        way.heal()

    async def swallow(self, way: Proxy) -> None:
        way.blackhole()
        await self.while_it_lasts()
        way.heal()

    async def refuse(self, way: Proxy) -> None:
        await way.refuse()
        await way.cut()
        await self.while_it_lasts()
        await way.accept()

    async def cut(self, way: Proxy) -> None:
        await way.cut()

    async def rotate(self, way: Proxy) -> None:
        await self.postgres.rotate(self.random.choice(["odd", "even"]))
        drain = asyncio.create_task(self.pool.drain())
        await asyncio.wait({drain}, timeout=1.0)
        drain.cancel()
        await asyncio.wait({drain})

    async def expire(self, way: Proxy) -> None:
        await self.pool.expire_connections()
        await asyncio.sleep(0.1)

    async def give_up(self, way: Proxy) -> None:
        acquires = [asyncio.create_task(use(self.pool)) for _ in range(8)]
        await asyncio.sleep(self.random.uniform(0.0, 0.2))
        for acquire in acquires:
            acquire.cancel()
        await asyncio.wait(acquires)


async def use(pool: aiopqr.AlternatingPool) -> None:
    try:
        con = await pool.acquire(timeout=2.0)
        try:
            # To cancel the query, asyncpg would need another socket, and shield() would log what nobody waits for.
            query = asyncio.create_task(con.fetchval("SELECT 1"))
            query.add_done_callback(lambda query: query.cancelled() or query.exception())
            await asyncio.wait({query})
            await query
            await asyncio.sleep(0.01)
        finally:
            await pool.release(con)
    except (aiopqr.AcquireTimeout, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        pass


@pytest.mark.proof
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.skipif(not TABLE.exists(), reason="only Linux lists sockets in /proc")
@pytest.mark.parametrize("session_reset", ["full", "deferred"])
async def test_no_more_sockets_than_promised_whatever_happens_at_once(
    session_reset: str, postgres: RotatingPostgres
) -> None:
    server, loop = postgres.server, asyncio.get_running_loop()
    until = loop.time() + SECONDS
    most = 0

    async def keep_using(pool: aiopqr.AlternatingPool) -> None:
        while loop.time() < until:
            await use(pool)

    async def watch(ports: set[str]) -> None:
        nonlocal most
        while loop.time() < until:
            most = max(most, sockets_to(ports))
            await asyncio.sleep(0.002)

    async with Proxy(server.host, server.port) as one, Proxy(server.host, server.port) as other:
        hosts = f"{one.host}:{one.port},{other.host}:{other.port}"
        async with aiopqr.create_pool(
            f"postgresql://{hosts}/{postgres.database}",
            credentials=postgres.source,
            ssl="disable",
            min_size=2,
            max_size=MAX_SIZE,
            max_lifetime=1.0,
            check_after=0.2,
            reset_timeout=2.0,
            session_reset=session_reset,
        ) as pool:
            async with asyncio.TaskGroup() as group:
                group.create_task(watch({f"{way.port:04X}" for way in (one, other)}), name="watch")
                for number in range(8):
                    group.create_task(keep_using(pool), name=f"user-{number}")
                for number in range(2):
                    group.create_task(Faults(pool, postgres, [one, other]).run(until), name=f"faults-{number}")
            for way in (one, other):
                way.heal()
                await way.accept()
            assert await pool.fetchval("SELECT 1") == 1
    assert MAX_SIZE <= most <= MAX_SIZE + 1
