"""Passwords change, and nobody notices."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

import aiopqr
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually

PROOF = bool(os.environ.get("AIOPQR_PROOF"))


class Load:
    """Workers that acquire and query until they are stopped; every error is kept."""

    def __init__(self, pool: aiopqr.AlternatingPool) -> None:
        self.pool = pool
        self.done = 0
        self.errors: list[BaseException] = []
        self.slowest = 0.0
        self._stop = False

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop:
            started = loop.time()
            try:
                async with self.pool.acquire() as con:
                    self.slowest = max(self.slowest, loop.time() - started)
                    await con.fetchval("select 1")
                self.done += 1
            except Exception as exc:
                self.errors.append(exc)
            await asyncio.sleep(0.001)

    def stop(self) -> None:
        self._stop = True


@asynccontextmanager
async def load(pool: aiopqr.AlternatingPool, workers: int = 20) -> AsyncIterator[Load]:
    running = Load(pool)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(workers):
            tasks.create_task(running.work())
        try:
            yield running
        finally:
            running.stop()


async def every(seconds: float, times: int, act: Callable[[], Awaitable[object]]) -> None:
    for _ in range(times):
        await asyncio.sleep(seconds)
        await act()


async def test_a_refused_account_falls_back_and_fetches(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool(max_size=2) as pool:
        await postgres.rotate("odd", store_delay=None)
        assert await pool.fetchval("select session_user") == postgres.pair.even.username
        assert postgres.failed_logins() == 1
        postgres.source.pair = postgres.pair
        await pool.refresh()
        async with pool.acquire() as one, pool.acquire() as two:
            users = {await con.fetchval("select session_user") for con in (one, two)}
    assert users == set(postgres.usernames)


@pytest.mark.proof
async def test_rotating_every_second_under_load_costs_no_error_and_at_most_two_failed_logins_each(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    rotations = 30 if PROOF else 5
    postgres.source.interval = 0.25
    parities = itertools.cycle(["odd", "even"])
    async with make_pool(min_size=10, max_size=10, max_lifetime=2.0) as pool, load(pool) as running:
        await every(1.0, rotations, lambda: postgres.rotate(next(parities)))
    assert running.errors == []
    assert running.done > 100
    assert postgres.failed_logins() <= 2 * rotations


@pytest.mark.proof
async def test_both_passwords_changed_at_once_with_the_store_behind_cost_no_error(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=5, max_size=5, max_lifetime=0.5) as pool, load(pool, 10) as running:
        await postgres.rotate_both(store_delay=1.0)
        await eventually(lambda: pool.stats().all_refused)
        before = pool.stats().replacements.done
        await eventually(lambda: pool.stats().replacements.done > before + 5)
    assert running.errors == []
    assert running.slowest < 0.5  # connections past their deadline stayed in use


@pytest.mark.proof
async def test_a_store_that_is_down_while_an_account_rotates_costs_neither_error_nor_wait(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=5, max_size=5, max_lifetime=0.5) as pool, load(pool, 10) as running:
        postgres.source.error = ConnectionError("the store is down")
        await postgres.rotate("odd")
        await asyncio.sleep(5.0 if PROOF else 1.5)
        assert pool.stats().refresh.failed > 0
        postgres.source.error = None
        await eventually(lambda: pool.stats().refresh.failures_in_a_row == 0)
    assert running.errors == []
    assert running.slowest < 0.5


async def test_an_acquire_waits_for_the_store_when_both_are_refused(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool() as pool:
        await postgres.rotate_both(store_delay=None)
        acquiring = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: pool.stats().all_refused)
        postgres.source.pair = postgres.pair
        assert await acquiring == 1
        assert pool.stats().accounts["odd"].refused == pool.stats().accounts["even"].refused == 1


async def test_credentials_that_stay_refused_are_told_with_both_refusals(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(timeout=0.5) as pool:
        await postgres.rotate_both(store_delay=None)
        with pytest.raises(aiopqr.CredentialsRefused) as caught:
            await pool.acquire()
    assert isinstance(caught.value, asyncpg.InvalidPasswordError)
    assert set(caught.value.refusals) == set(postgres.usernames)
    assert all(name in str(caught.value) for name in postgres.usernames)


async def test_a_pending_password_is_tried_when_both_are_refused(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    from dataclasses import replace

    stale = postgres.pair
    await postgres.rotate_both(store_delay=None)
    postgres.source.pair = replace(stale, pending=postgres.pair.even)
    async with make_pool() as pool:
        assert await pool.fetchval("select session_user") == postgres.pair.even.username
    assert postgres.failed_logins() == 2


async def test_drain_replaces_what_was_superseded_and_only_that(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=4) as pool:
        before = {row["pid"]: row["usename"] for row in await postgres.sessions()}
        await postgres.rotate("odd")
        await pool.refresh()
        await pool.drain()
        await eventually(lambda: pool.stats().size == 4)
        after = {row["pid"]: row["usename"] for row in await postgres.sessions()}
        odd, even = postgres.usernames
        assert {pid for pid, name in before.items() if name == even} <= set(after)
        assert not {pid for pid, name in before.items() if name == odd} & set(after)


async def test_drain_on_rotation_replaces_at_once(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool(min_size=2, drain_on_rotation=True) as pool:
        await postgres.rotate("odd")
        await pool.refresh()
        await eventually(lambda: pool.stats().replacements.why.get("superseded") == 1)
        await eventually(lambda: pool.stats().size == 2)


async def test_pools_that_share_a_refresher_share_the_fetch_and_the_refusal(postgres: RotatingPostgres) -> None:
    async with aiopqr.Refresher(postgres.source) as refresher:
        pools = [aiopqr.create_pool(postgres.dsn, credentials=refresher, min_size=0, ssl="disable") for _ in range(2)]
        async with pools[0], pools[1]:
            await postgres.rotate("odd", store_delay=None)
            for pool in pools:
                assert await pool.fetchval("select 1") == 1
            assert postgres.source.fetches <= 3
        assert postgres.failed_logins() == 1
        assert refresher.stats().ok >= 1


async def test_a_newer_pair_recovers_without_a_further_refusal(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    events: list[str] = []
    async with make_pool(min_size=1, listeners=[lambda event: events.append(type(event).__name__)]) as pool:
        await postgres.rotate("odd")
        await pool.refresh()
        assert "Refreshed" in events
        for _ in range(4):
            await pool.expire_connections()
            assert await pool.fetchval("select 1") == 1
    assert postgres.failed_logins() == 0
