"""Connections that nobody uses: closed above the floor, by one timer, and only then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import aiopqr
from aiopqr._pool.timers import _Timer

from .conftest import MakePool, eventually


async def use(pool: aiopqr.AlternatingPool, count: int) -> list[int]:
    """Check out ``count`` connections together, and give them back in order. Returns their backends."""
    connections = [await pool.acquire() for _ in range(count)]
    backends = [con.get_server_pid() for con in connections]
    for con in connections:
        await pool.release(con)
    return backends


async def test_what_is_idle_for_long_is_closed_down_to_the_floor(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, max_inactive_connection_lifetime=0.05) as pool:
        await use(pool, 4)
        assert pool.get_size() == 4
        await eventually(lambda: pool.get_size() == 1)
        await use(pool, 3)
        await eventually(lambda: pool.get_size() == 1)


async def test_the_longest_idle_is_closed_first(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, max_inactive_connection_lifetime=0.2) as pool:
        backends = await use(pool, 3)
        await eventually(lambda: pool.get_size() == 1)
        assert await use(pool, 1) == [backends[-1]]


async def test_a_connection_in_use_is_not_idle_however_long_that_takes(make_pool: MakePool) -> None:
    async with make_pool(max_inactive_connection_lifetime=0.05) as pool, pool.acquire() as con:
        await use(pool, 2)
        await eventually(lambda: pool.get_size() == 1)
        assert await con.fetchval("select 1") == 1


async def test_without_a_limit_connections_stay(make_pool: MakePool) -> None:
    async with (
        make_pool(max_inactive_connection_lifetime=0) as pool,
        make_pool(max_inactive_connection_lifetime=0.05) as other,
    ):
        await use(pool, 2)
        await use(other, 2)
        await eventually(lambda: other.get_size() == 0)
        assert pool.get_size() == 2


async def test_a_connection_that_is_being_checked_when_the_timer_fires_is_closed_later(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_pool(max_inactive_connection_lifetime=0.5) as pool:
        await use(pool, 1)
        pool._connections.distrust()
        checking, may_end, timer = asyncio.Event(), asyncio.Event(), pool._releases._idle_timer

        async def is_alive(_: object) -> bool:
            checking.set()
            await may_end.wait()
            return True

        monkeypatch.setattr(pool._supply._checks, "is_alive", is_alive)
        fired = asyncio.Event()
        look = timer._end_what_is_due
        monkeypatch.setattr(timer, "_end_what_is_due", lambda *args: (fired.set(), look(*args))[1])
        waiting = asyncio.create_task(pool.acquire().__aenter__())
        await checking.wait()
        await fired.wait()
        waiting.cancel()
        may_end.set()
        await eventually(lambda: pool.get_size() == 0)


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> list[_Timer]:
    """The watches that armed their timer, each time they did."""
    armed: list[_Timer] = []
    arm = _Timer._arm

    def noted(watch: _Timer, when: float) -> None:
        armed.append(watch)
        arm(watch, when)

    monkeypatch.setattr(_Timer, "_arm", noted)
    return armed


async def test_a_pool_at_its_floor_arms_no_timer(make_pool: MakePool, armed: list[_Timer]) -> None:
    async with make_pool(min_size=2, max_inactive_connection_lifetime=0.05) as pool:
        await use(pool, 2)
        assert not armed
        await use(pool, 3)
        await eventually(lambda: pool.get_size() == 2)
        before = len(armed)  # 1, or more if the releases took longer than the limit
        await use(pool, 2)
        assert len(armed) == before > 0


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_a_pool_that_has_ended_leaves_no_timer(make_pool: MakePool, armed: list[_Timer], end: str) -> None:
    async with make_pool(min_size=1) as pool:
        await use(pool, 3)
        await pool.execute("select 1")
        if end == "terminate":
            pool.terminate()
    assert len(armed) == 2  # one for the idle connection, one for the release
    assert all(watch._timer and watch._timer.cancelled() for watch in armed)


@pytest.mark.parametrize("limit", [-1, float("nan"), "5", None])
def test_an_impossible_limit_is_named(make_pool: MakePool, limit: Any) -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="max_inactive_connection_lifetime"):
        make_pool(max_inactive_connection_lifetime=limit)
