"""Any await may be cancelled, and nothing is left behind.

A call is run again and again, each time cancelled one turn of the event loop later, until it survives. So each of its
awaits has been cancelled once. The fixtures fail a test that leaves a task or a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import aiopqr
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually

MOST_TURNS = 400


async def cancelled_everywhere(call: Callable[[], Awaitable[object]], *, step: int = 1) -> int:
    """Cancel ``call()`` after 0, 1, 2… turns of the loop until it gets through. Returns how many it took."""
    for turns in range(0, MOST_TURNS, step):
        task = asyncio.ensure_future(call())
        for _ in range(turns):
            await asyncio.sleep(0)
            if task.done():
                break
        if task.done():
            await task
            return turns
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            continue
        return turns
    # It waits for the network for longer than that: each of the first turns has been cancelled, and then some waits.
    for delay in (0.0005, 0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02):
        task = asyncio.ensure_future(call())
        await asyncio.wait({task}, timeout=delay)
        if task.done():
            await task
            return MOST_TURNS
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() or task.exception() is None
    return MOST_TURNS


async def all_permits_are_there(pool: aiopqr.AlternatingPool) -> None:
    held = [await pool.acquire(timeout=5) for _ in range(pool.get_max_size())]
    for con in held:
        assert await con.fetchval("select 1") == 1
        await pool.release(con)
    assert pool.stats().in_use == 0


async def test_acquire_that_connects(make_pool: MakePool) -> None:
    async with make_pool(max_size=2, max_lifetime=0) as pool:

        async def call() -> None:
            await pool.expire_connections()
            con = await pool.acquire()
            con.terminate()

        await cancelled_everywhere(call, step=2)
        await all_permits_are_there(pool)


async def test_acquire_and_release_of_a_ready_connection(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, max_size=1) as pool:

        async def call() -> None:
            async with pool.acquire() as con:
                await con.fetchval("select 1")

        await cancelled_everywhere(call)
        await all_permits_are_there(pool)


async def test_acquire_that_waits_its_turn(make_pool: MakePool) -> None:
    async with make_pool(max_size=1) as pool:

        async def call() -> None:
            async def hold() -> None:
                async with pool.acquire():
                    await asyncio.sleep(0)

            await asyncio.gather(hold(), hold(), hold())

        await cancelled_everywhere(call)
        await all_permits_are_there(pool)


async def test_a_check_of_an_idle_connection(make_pool: MakePool) -> None:
    async with make_pool(min_size=2, max_size=2, check_after=1e-9) as pool:

        async def call() -> None:
            async with pool.acquire():
                pass

        await cancelled_everywhere(call)
        await all_permits_are_there(pool)


async def test_a_fallback(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    await postgres.rotate("odd", store_delay=None)

    async def call() -> None:
        async with aiopqr.Connector(postgres.dsn, credentials=postgres.source, ssl="disable") as connector:
            con = await connector.connect()
            con.terminate()

    await cancelled_everywhere(call, step=3)


async def test_a_wait_for_newer_credentials(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool(max_size=2) as pool:
        await postgres.rotate_both(store_delay=None)
        acquiring = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: pool.stats().all_refused)
        acquiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acquiring
        postgres.source.pair = postgres.pair
        await all_permits_are_there(pool)


async def test_refresh(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool() as pool:
        await cancelled_everywhere(pool.refresh)
        fetches = postgres.source.fetches
        await pool.refresh()
        assert postgres.source.fetches > fetches
        assert pool.stats().refresh.failed == 0


async def test_drain(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool(min_size=3, max_size=3) as pool:

        async def call() -> None:
            await postgres.rotate("odd")
            await pool.refresh()
            await pool.drain()

        await cancelled_everywhere(call, step=40)
        await pool.refresh()
        await pool.drain()
        await all_permits_are_there(pool)


@pytest.mark.parametrize("min_size", [0, 3])
async def test_opening_a_pool(make_pool: MakePool, min_size: int) -> None:
    async def call() -> None:
        pool = make_pool(min_size=min_size, max_lifetime=0.1)
        await pool
        await pool.close()

    await cancelled_everywhere(call, step=5)


async def test_closing_a_pool(make_pool: MakePool) -> None:
    for turns in range(1, 60, 2):
        pool = make_pool(min_size=2, max_lifetime=0.02)
        await pool
        closing = asyncio.ensure_future(pool.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})
        with pytest.raises(aiopqr.PoolClosing):
            await pool.acquire()


async def test_replacing(make_pool: MakePool) -> None:
    for turns in range(0, 60, 3):
        pool = make_pool(min_size=2, max_size=2, max_lifetime=1e-3)
        await pool
        for _ in range(turns):
            await asyncio.sleep(0)
        await pool.close()
