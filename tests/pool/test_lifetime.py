"""Make before break: connections are replaced while they work, and never closed for nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

import aiopqr
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually
from .test_rotation import load


async def test_a_connection_past_its_lifetime_is_replaced_and_the_floor_is_kept(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=3, max_lifetime=0.3) as pool:
        before = {row["pid"] for row in await postgres.sessions()}
        await eventually(lambda: pool.stats().replacements.why.get("lifetime", 0) >= 3)
        await eventually(lambda: pool.stats().size == 3)
        assert not before & {row["pid"] for row in await postgres.sessions()}


async def test_an_idle_connection_above_the_floor_is_just_closed(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=1, max_lifetime=0.4) as pool:
        async with pool.acquire(), pool.acquire(), pool.acquire():
            pass
        opened = sum(account.opened for account in pool.stats().accounts.values())
        await eventually(lambda: pool.stats().size == 1)
        assert opened == 3
        assert pool.stats().replacements.done >= 2


async def test_the_replacement_is_open_before_the_old_connection_is_closed(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=1, max_size=1, max_lifetime=0.3) as pool:
        seen = []
        while pool.stats().replacements.done < 2:
            seen.append(len(await postgres.sessions()))
    assert min(seen) >= 1
    assert max(seen) <= 2


async def test_one_that_is_held_delays_no_other_and_the_server_sees_one_more_at_most(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    most = 0
    async with (
        make_pool(min_size=3, max_size=3, max_lifetime=0.3) as pool,
        load(pool, 4) as running,
        pool.acquire() as held,
        held.transaction(),
    ):
        pid = held.get_server_pid()
        while pool.stats().replacements.done < 6:
            most = max(most, len(await postgres.sessions()))
        assert pid in {row["pid"] for row in await postgres.sessions()}
        assert await held.fetchval("select 1") == 1
    assert running.errors == []
    assert most <= 4


async def test_all_held_past_their_deadline_by_transactions_leave_room_for_one_spare_only(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=3, max_size=3, max_lifetime=0.2) as pool:
        held = [await pool.acquire() for _ in range(3)]
        for con in held:
            await con.execute("begin")
        await eventually(lambda: pool.stats().spare == 1)
        assert len(await postgres.sessions()) <= 4
        for con in held:
            await con.execute("commit")
            await pool.release(con)
        await eventually(lambda: pool.stats().replacements.done >= 3)


async def test_a_working_connection_outlives_its_deadline_while_no_replacement_can_be_had(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    events: list[str] = []
    options = {"min_size": 2, "max_size": 2, "max_lifetime": 0.3, "timeout": 0.3}
    async with make_pool(**options, listeners=[lambda event: events.append(type(event).__name__)]) as pool:
        before = {row["pid"] for row in await postgres.sessions()}
        await postgres.rotate_both(store_delay=None)
        await eventually(lambda: pool.stats().replacements.delayed >= 2)
        assert "CredentialsRefused" in str(pool.stats().replacements.delayed_by)
        assert "ReplacementDelayed" in events
        assert {row["pid"] for row in await postgres.sessions()} == before
        assert await pool.fetchval("select 1") == 1
        postgres.source.pair = postgres.pair
        await eventually(lambda: pool.stats().replacements.done >= 2, within=30)
        async with asyncio.timeout(10):  # to be closed, which happens in the background
            while before & {row["pid"] for row in await postgres.sessions()}:
                await asyncio.sleep(0.01)


async def test_a_spare_is_complete_and_runs_the_users_init_once(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    made: list[int] = []

    async def init(con: asyncpg.Connection) -> None:
        made.append(con.get_server_pid())
        await con.execute("set application_name = 'made by init'")

    async with make_pool(min_size=2, max_size=2, max_lifetime=0.3, init=init) as pool:
        await eventually(lambda: pool.stats().replacements.done >= 2)
        await eventually(lambda: pool.stats().size == 2)
        rows = await postgres.sessions()
    assert len(made) == len(set(made))
    assert {row["pid"] for row in rows} <= set(made)
    assert {row["application_name"] for row in rows} == {"made by init"}


async def test_a_spare_is_discarded_when_connections_are_expired_or_arguments_change(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=1, max_size=1, max_lifetime=0.2) as pool:
        async with pool.acquire():
            await eventually(lambda: pool.stats().spare == 1)
            await eventually_sessions(postgres, 2)
            await pool.expire_connections()
            pool.set_connect_args(postgres.dsn, ssl="disable", server_settings={"application_name": "changed"})
        async with pool.acquire() as con:
            assert await con.fetchval("show application_name") == "changed"


async def eventually_sessions(postgres: RotatingPostgres, count: int) -> None:
    async with asyncio.timeout(10):
        while len(await postgres.sessions()) != count:
            await asyncio.sleep(0.01)


async def test_lifetime_zero_turns_replacement_off(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool(min_size=1, max_lifetime=0) as pool:
        (session,) = pool._connections
        assert session.deadline == float("inf")


async def test_a_release_that_closes_the_connection_does_not_release_the_next_checkout(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    resets: list[int] = []

    async def reset(con: asyncpg.Connection) -> None:
        resets.append(con.get_server_pid())

    async with make_pool(min_size=1, max_size=1, max_lifetime=0.3, reset=reset) as pool:
        con = await pool.acquire()
        await eventually(lambda: pool._replacement.spare)
        waiter = asyncio.create_task(pool.acquire().__aenter__())
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.release(con)
        async with asyncio.timeout(5):
            second = await waiter
        assert await second.fetchval("select 1") == 1
        assert pool.stats().in_use == 1
        await pool.release(second)
        assert await pool.fetchval("select 1") == 1
    assert len(set(resets)) == 2


async def make_due(pool: aiopqr.AlternatingPool) -> None:
    """Wait until the pool's only connection is due and the spare is ready to take its place."""
    (pooled,) = pool._connections
    await eventually(lambda: pool._replacement.spare and pooled.is_due(pool._event_loop.time()))


DUE_SOON = {"min_size": 1, "max_size": 1, "max_lifetime": 0.3, "max_lifetime_jitter": 0.0}


@pytest.mark.parametrize("more", [{}, {"reset": "advisory"}, {"release": 5.0}])
async def test_a_release_that_replaces_the_connection_resets_it_first(
    make_pool: MakePool, postgres: RotatingPostgres, more: dict[str, Any]
) -> None:
    async def reset(con: asyncpg.Connection) -> None:
        await con.execute("select pg_advisory_unlock_all()")

    options = {"reset": reset} if "reset" in more else {}
    async with make_pool(**DUE_SOON, **options) as pool:
        for _ in range(3):
            con = await pool.acquire()
            before = con.get_server_pid()
            await con.execute("".join(f"create temp table t{n} (id int primary key);" for n in range(20)))
            await con.execute("select pg_advisory_lock(77)")
            await make_due(pool)
            await pool.release(con, timeout=more.get("release"))
            async with pool.acquire() as con:
                assert con.get_server_pid() != before
                assert await con.fetchval("select pg_try_advisory_lock(77)")


@pytest.mark.parametrize("mode", ["full", "deferred", "transaction"])
async def test_a_release_that_replaces_the_connection_rolls_its_transaction_back_first(
    make_pool: MakePool, postgres: RotatingPostgres, mode: str
) -> None:
    async with make_pool(**DUE_SOON, session_reset=mode) as pool:
        await pool.execute("create table rows (id int)")
        con = await pool.acquire()
        before = con.get_server_pid()
        await con.execute("begin; lock table rows")
        await make_due(pool)
        loop = asyncio.get_running_loop()
        rolled_back: list[Any] = []  # asyncpg reports it
        loop.set_exception_handler(lambda _, context: rolled_back.append(context))
        await pool.release(con)
        loop.set_exception_handler(None)
        assert len(rolled_back) == 1
        async with pool.acquire() as con:
            await con.execute("begin; lock table rows nowait; rollback")
            assert con.get_server_pid() != before


@pytest.mark.parametrize("mode", ["full", "deferred", "transaction"])
async def test_a_connection_that_is_due_is_replaced_though_a_task_waits_for_it(make_pool: MakePool, mode: str) -> None:
    async with make_pool(**DUE_SOON, session_reset=mode) as pool:
        con = await pool.acquire()
        before = con.get_server_pid()
        await con.execute("select 1")
        waiter = asyncio.create_task(pool.acquire().__aenter__())
        await make_due(pool)
        await pool.release(con)
        second = await waiter
        assert second.get_server_pid() != before
        await pool.release(second)


@pytest.mark.proof
async def test_replacement_under_load_causes_no_error(make_pool: MakePool) -> None:
    async with make_pool(min_size=5, max_size=5, max_lifetime=0.5) as pool, load(pool) as running:
        await eventually(lambda: pool.stats().replacements.done >= 20)
    assert running.errors == []
