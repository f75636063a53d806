"""The acquire path: timeouts that explain themselves, first come first served, checks of idle connections."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import aiopqr
from aiopqr.clock import TICK
from aiopqr.events import ConnectionLost, LeakSuspected
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually


async def test_a_timeout_tells_sizes_and_waiters(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, max_size=1, acquire_timeout=0.1, name="orders") as pool:
        async with pool.acquire():
            with pytest.raises(aiopqr.AcquireTimeout, match=r"orders: no connection within \d\.\d s: 1 open of"):
                await pool.acquire()
        assert pool.stats().timeouts == 1
        assert await pool.fetchval("select 1") == 1


async def test_the_calls_own_timeout_wins_and_none_waits(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, max_size=1, acquire_timeout=0.1) as pool:
        held = await pool.acquire()
        patient = asyncio.create_task(pool.acquire(timeout=None).__aenter__())
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.2)
        assert not patient.done()
        await pool.release(held)
        await pool.release(await patient)


async def test_a_timeout_while_connecting_has_the_connects_failure_as_its_cause(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(acquire_timeout=0.5) as pool:
        await postgres.rotate_both(store_delay=None)
        with pytest.raises(aiopqr.AcquireTimeout, match="InvalidPasswordError") as caught:
            await pool.acquire()
        assert isinstance(caught.value.__cause__, asyncpg.InvalidPasswordError)


async def test_waiters_are_served_in_order(make_pool: MakePool) -> None:
    served: list[int] = []

    async def take(pool: aiopqr.AlternatingPool, number: int) -> None:
        async with pool.acquire():
            served.append(number)

    async with make_pool(max_size=1) as pool:
        held = await pool.acquire()
        tasks = []
        for number in range(10):
            tasks.append(asyncio.create_task(take(pool, number)))
            await eventually(lambda n=number: pool.stats().waiting == n + 1)
        await pool.release(held)
        await take(pool, 99)  # comes late
        await asyncio.gather(*tasks)
    assert served == [*range(10), 99]


async def test_no_task_of_100_on_10_connections_starves(make_pool: MakePool) -> None:
    rounds = [0] * 100
    async with make_pool(min_size=10, max_size=10) as pool:

        async def work(number: int) -> None:
            while sum(rounds) < 5000:
                async with pool.acquire() as con:
                    await con.execute("select 1")
                rounds[number] += 1

        await asyncio.gather(*(work(number) for number in range(100)))
    assert min(rounds) >= max(rounds) / 2


async def test_each_waiter_times_out_at_its_own_time(make_pool: MakePool) -> None:
    ended: list[float] = []

    async def wait(pool: aiopqr.AlternatingPool, timeout: float) -> None:
        with pytest.raises(aiopqr.AcquireTimeout):
            await pool.acquire(timeout=timeout)
        ended.append(timeout)

    async with make_pool(max_size=1) as pool, pool.acquire():
        patient = asyncio.create_task(pool.acquire(timeout=None).__aenter__())
        await asyncio.gather(*(wait(pool, timeout) for timeout in (0.3, 0.1, 0.2)))
        assert pool.stats().waiting == 1
        patient.cancel()
    assert ended == [0.1, 0.2, 0.3]


async def test_max_waiting_refuses_at_once(make_pool: MakePool) -> None:
    async with make_pool(max_size=1, max_waiting=1) as pool:
        held = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire().__aenter__())
        await eventually(lambda: pool.stats().waiting == 1)
        with pytest.raises(aiopqr.TooManyWaiting):
            await pool.acquire()
        await pool.release(held)
        await pool.release(await waiting)


async def test_a_dead_idle_connection_is_replaced_without_the_caller_seeing_it(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    events: list[object] = []
    async with make_pool(min_size=3, check_after=1e-9, listeners=[events.append]) as pool:
        await postgres.terminate()
        for _ in range(3):
            assert await pool.fetchval("select 1") == 1
    assert len([event for event in events if isinstance(event, ConnectionLost)]) <= 3


async def test_a_check_leaves_a_healthy_connection_in_the_pool(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool(min_size=1, max_size=1, check_after=1e-9) as pool:
        pids = {await pool.fetchval("select pg_backend_pid()") for _ in range(5)}
    assert len(pids) == 1
    assert pool.stats().lost == 0


async def test_a_leak_is_told_with_the_stack_of_its_acquire(make_pool: MakePool) -> None:
    events: list[object] = []
    async with make_pool(leak_detection_threshold=0.05, listeners=[events.append]) as pool, pool.acquire():
        await eventually(lambda: events)
    (leak,) = [event for event in events if isinstance(event, LeakSuspected)]
    assert "test_a_leak_is_told" in leak.stack
    assert leak.held >= 0.05 - TICK


async def test_a_second_user_error_in_setup_frees_the_permit(make_pool: MakePool) -> None:
    fail = True

    async def setup(con: object) -> None:
        if fail:
            raise ValueError("setup failed")

    async with make_pool(max_size=1, setup=setup) as pool:
        for _ in range(3):
            with pytest.raises(ValueError, match="setup failed"):
                await pool.acquire()
        fail = False
        assert await pool.fetchval("select 1") == 1


async def test_close_refuses_those_who_wait_and_those_who_come(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    await pool
    held = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire().__aenter__())
    await eventually(lambda: pool.stats().waiting == 1)
    closing = asyncio.create_task(pool.close())
    with pytest.raises(aiopqr.PoolClosing):
        await waiting
    with pytest.raises(asyncpg.InterfaceError):
        await pool.acquire()
    assert not closing.done()
    assert await held.fetchval("select 1") == 1
    await pool.release(held)
    await closing


async def test_close_with_a_timeout_terminates_what_is_still_in_use(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(max_size=1)
    await pool
    held = await pool.acquire()
    await pool.close(timeout=0.05)
    with pytest.raises(asyncpg.InterfaceError):
        await held.fetchval("select 1")
    assert "still open 0.05 s after close()" in caplog.text


async def test_a_second_close_keeps_its_own_timeout(make_pool: MakePool) -> None:
    pool = await make_pool(max_size=1)
    con = await pool.acquire()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await pool.close(timeout=0.05)
        await closing
    with pytest.raises(asyncpg.InterfaceError):
        await con.fetchval("select 1")


async def test_close_ends_a_connect_that_is_under_way(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    pool = make_pool()
    await pool
    await postgres.rotate_both(store_delay=None)
    acquiring = asyncio.create_task(pool.acquire().__aenter__())
    await eventually(lambda: pool.stats().all_refused)
    await pool.close()
    with pytest.raises(aiopqr.PoolClosing):
        await acquiring


async def test_terminate_leaves_nothing(make_pool: MakePool) -> None:
    pool = make_pool(min_size=3, max_lifetime=0.1)
    await pool
    await eventually(lambda: pool.stats().replacements.done)
    pool.terminate()
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_the_pool_can_be_opened_in_one_task_and_closed_in_another(make_pool: MakePool) -> None:
    pool = make_pool(min_size=1)

    async def open_it() -> None:
        await pool

    await asyncio.create_task(open_it())
    await asyncio.create_task(pool.close())


async def test_an_acquire_after_expire_connections_gets_a_new_connection_at_once(make_pool: MakePool) -> None:
    """Even if the idle one was in use a moment ago, and need not be checked."""
    async with make_pool(min_size=1, max_size=1) as pool:
        before = await pool.fetchval("select pg_backend_pid()")
        await pool.expire_connections()
        async with asyncio.timeout(10):
            assert await pool.fetchval("select pg_backend_pid()") != before
