"""What asyncpg's users pass and expect still works, and so do the private ways into asyncpg."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import sys
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionProxy

import aiopqr
from aiopqr._pool._asyncpg import (
    busy_check,
    counting_class,
    hand_out,
    next_place,
    put_back,
    queries_run,
    raw_connection,
    release_now,
)
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually


async def test_the_users_connect_gets_the_chosen_account(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    users: list[str] = []

    async def connect(*args: object, **kwargs: object) -> asyncpg.Connection:
        users.append(kwargs["user"])
        return await asyncpg.connect(*args, **kwargs)

    async with make_pool(min_size=2, connect=connect) as pool:
        assert await pool.fetchval("select 1") == 1
    assert sorted(users) == sorted(postgres.usernames)


async def test_the_users_connect_may_fail_with_an_error_of_its_own(make_pool: MakePool) -> None:
    async def connect(*args: object, **kwargs: object) -> asyncpg.Connection:
        raise LookupError("no such tunnel")

    with pytest.raises(LookupError, match="no such tunnel"):
        await make_pool(min_size=1, connect=connect)


async def test_a_refusal_from_the_users_connect_falls_back(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async def connect(*args: object, **kwargs: object) -> asyncpg.Connection:
        return await asyncpg.connect(*args, **kwargs)

    async with make_pool(connect=connect) as pool:
        await postgres.rotate("odd", store_delay=None)
        assert await pool.fetchval("select session_user") == postgres.pair.even.username


async def test_hooks_run_when_asyncpg_runs_them(make_pool: MakePool) -> None:
    calls: list[str] = []

    async def init(con: asyncpg.Connection) -> None:
        calls.append("init")
        await con.set_type_codec("json", encoder=str, decoder=lambda text: "decoded " + text, schema="pg_catalog")

    async def setup(con: asyncpg.Connection) -> None:
        calls.append("setup")

    async def reset(con: asyncpg.Connection) -> None:
        calls.append("reset")

    async with make_pool(max_size=1, init=init, setup=setup, reset=reset) as pool:
        assert await pool.fetchval("select '1'::json") == "decoded 1"
        async with pool.acquire():
            pass
    assert calls == ["init", "setup", "reset", "setup", "reset"]


async def test_connection_class_and_record_class_are_used(make_pool: MakePool) -> None:
    class MyConnection(asyncpg.Connection):
        async def answer(self) -> int:
            return 42

    class MyRecord(asyncpg.Record):
        pass

    async with make_pool(connection_class=MyConnection, record_class=MyRecord) as pool, pool.acquire() as con:
        assert await con.answer() == 42
        assert isinstance(await con.fetchrow("select 1"), MyRecord)


async def test_the_pools_own_query_methods_work(make_pool: MakePool) -> None:
    async with make_pool() as pool:
        await pool.execute("create table t (a int)")
        await pool.executemany("insert into t values ($1)", [(1,), (2,)])
        assert [row["a"] for row in await pool.fetch("select a from t order by a")] == [1, 2]
        assert (await pool.fetchrow("select count(*) as n from t"))["n"] == 2
        await pool.copy_records_to_table("t", records=[(3,)])
        output = io.BytesIO()
        await pool.copy_from_table("t", output=output)
        assert output.getvalue() == b"1\n2\n3\n"


async def test_init_size_opens_more_than_the_floor(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, init_size=3) as pool:
        assert pool.get_size() == 3


async def test_set_connect_args_takes_everything_but_the_credentials(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=1, max_lifetime=0.2) as pool:
        pool.set_connect_args(postgres.dsn, ssl="disable", server_settings={"application_name": "later"})
        with pytest.raises(aiopqr.ConfigurationError, match="password="):
            pool.set_connect_args(postgres.dsn, password="x")
        await pool.expire_connections()
        assert await pool.fetchval("show application_name") == "later"


async def test_expire_connections_replaces_on_the_next_acquire(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, max_size=1) as pool:
        before = await pool.fetchval("select pg_backend_pid()")
        await pool.expire_connections()
        assert await pool.fetchval("select pg_backend_pid()") != before


async def test_a_second_await_gives_the_same_pool(make_pool: MakePool) -> None:
    pool = make_pool()
    assert await pool is pool
    assert await pool is pool
    await pool.close()


async def test_a_pool_that_is_not_open_says_so(make_pool: MakePool) -> None:
    pool = make_pool()
    with pytest.raises(asyncpg.InterfaceError, match="not initialized"):
        await pool.acquire()
    with pytest.raises(asyncpg.InterfaceError, match="not initialized"):
        await pool.close()


async def test_what_fails_while_opening_leaves_nothing(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    made = 0

    async def init(con: asyncpg.Connection) -> None:
        nonlocal made
        made += 1
        if made == 3:
            raise ValueError("init failed")

    with pytest.raises(ValueError, match="init failed"):
        await make_pool(min_size=4, init=init)


async def test_a_pool_dropped_unclosed_is_collected_with_a_warning(make_pool: MakePool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = make_pool(min_size=1, max_lifetime=0.2)
        await pool
        gone = weakref.ref(pool)
        del pool
        gc.collect()
    assert any("unclosed pool" in str(warning.message) for warning in caught)
    caught.clear()  # each has its source, to which Python 3.15 leaves the weak references
    gc.collect()
    assert gone() is None
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_pool_that_is_collected_in_another_thread_is_closed_in_its_own(
    make_pool: MakePool, postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    dropped = [await make_pool(min_size=1, max_lifetime=0.2)]  # type: ignore[misc]
    terminated_in: list[int] = []
    terminate = aiopqr.AlternatingPool.terminate

    def noted(pool: aiopqr.AlternatingPool) -> None:
        terminated_in.append(threading.get_ident())
        terminate(pool)

    def drop() -> None:
        dropped.clear()
        gc.collect()

    monkeypatch.setattr(aiopqr.AlternatingPool, "terminate", noted)
    gc.disable()  # otherwise this thread might collect it first
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            thread = threading.Thread(target=drop)
            thread.start()
            thread.join()
        assert [str(warning.message)[:13] for warning in caught] == ["unclosed pool"]
        caught.clear()
        await eventually(lambda: len(asyncio.all_tasks()) == 1)
    finally:
        gc.enable()
    assert terminated_in == [threading.get_ident()]
    assert ignored == []
    # The fixture fails if its session stays open.


async def test_queries_cancelled_by_their_timeout_leave_no_task(make_pool: MakePool) -> None:
    async with make_pool(max_size=1) as pool:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await pool.fetchval("select pg_sleep(5)", timeout=0.005)
        assert await pool.fetchval("select 1") == 1
        await eventually(lambda: len(asyncio.all_tasks()) <= 4)


# The private ways.


async def test_raw_connection_is_the_one_behind_the_proxy(make_pool: MakePool) -> None:
    async with make_pool() as pool:
        proxy = await pool.acquire()
        con = raw_connection(proxy)
        assert isinstance(con, asyncpg.Connection)
        assert con.get_server_pid() == proxy.get_server_pid()
        await pool.release(proxy)
        assert raw_connection(proxy) is None
        assert raw_connection(object()) is None


async def test_queries_run_counts_every_way_to_run_something(make_pool: MakePool) -> None:
    async with make_pool() as pool, pool.acquire() as proxy:
        con = raw_connection(proxy)
        sink = io.BytesIO()
        ways = [
            lambda: proxy.execute("select 1"),
            lambda: proxy.execute("select $1::int", 1),
            lambda: proxy.fetch("select 1"),
            lambda: proxy.fetchrow("select 1"),
            lambda: proxy.fetchval("select 1"),
            lambda: proxy.executemany("select $1::int", [(1,)]),
            lambda: proxy.fetchmany("select $1::int", [(1,)]),
            lambda: proxy.execute("create temporary table t (a int)"),
            lambda: proxy.copy_records_to_table("t", records=[(1,)]),
            lambda: proxy.copy_to_table("t", source=io.BytesIO(b"1\n")),
            lambda: proxy.copy_from_table("t", output=sink),
            lambda: proxy.copy_from_query("select 1", output=sink),
            lambda: proxy.add_listener("channel", print),
            lambda: proxy.remove_listener("channel", print),
        ]
        for number, way in enumerate(ways):
            before = queries_run(con)
            await way()
            assert queries_run(con) > before, number
        prepared = await proxy.prepare("select 1")
        before = queries_run(con)
        await prepared.fetchval()
        assert queries_run(con) > before
        async with proxy.transaction():
            before = queries_run(con)
            async for _ in proxy.cursor("select 1"):
                pass
            assert queries_run(con) > before


def test_the_counting_class_is_made_once_and_looks_like_the_users_own() -> None:
    class Mine(asyncpg.Connection):
        pass

    counting = counting_class(Mine)
    assert counting is counting_class(Mine)
    assert issubclass(counting, Mine)
    assert counting.__qualname__ == Mine.__qualname__


@pytest.mark.parametrize("listens", [False, True])
async def test_a_place_given_at_once_is_as_asyncpg_leaves_it(postgres: RotatingPostgres, listens: bool) -> None:
    account = postgres.pair.odd
    assert account is not None

    async def no_reset(con: asyncpg.Connection) -> None:
        pass

    async with asyncpg.create_pool(
        postgres.dsn,
        user=account.username,
        password=account.password.reveal(),
        min_size=1,
        max_size=1,
        reset=no_reset,
        max_inactive_connection_lifetime=0,
    ) as pool:

        async def give(proxy: PoolConnectionProxy) -> None:
            release_now(proxy)

        def states(con: Any) -> dict[str, Any]:
            found = {name: getattr(con, name) for name in asyncpg.Connection.__slots__ if name != "__weakref__"}
            return {name: value.copy() if isinstance(value, dict | set) else value for name, value in found.items()}

        async def after(release: Callable[[PoolConnectionProxy], Awaitable[None]]) -> dict[str, object]:
            proxy = await pool.acquire()
            con, holder = raw_connection(proxy), proxy._holder
            await proxy.fetchval("select 1")
            if listens:
                await proxy.add_listener("channel", print)
            before = states(con)
            warned = pytest.warns(asyncpg.InterfaceWarning, match="listener") if listens else contextlib.nullcontext()
            with warned:
                await release(proxy)
            assert raw_connection(proxy) is None
            now = states(con)
            return {
                **{name: getattr(holder, name) for name in type(holder).__slots__ if hasattr(holder, name)},
                "changed": sorted(name for name in now if now[name] != before[name]),
                "releases": con._pool_release_ctr - before["_pool_release_ctr"],
                "queue": pool._queue.qsize(),
                "idle": pool.get_idle_size(),
            }

        assert await after(give) == await after(pool.release)


async def test_the_flags_of_asyncpgs_pool_mean_what_ours_sets_them_for() -> None:
    """AlternatingPool sets them while it fetches its first credentials, and before it turns acquirers away."""
    pool = asyncpg.create_pool("postgresql://127.0.0.1:1/nowhere", min_size=0)
    assert (pool._initializing, pool._closing, pool.is_closing()) == (False, False, False)
    pool._initializing = True
    with pytest.raises(asyncpg.InterfaceError, match="being initialized"):
        await pool.acquire()
    pool._initializing = False
    await pool
    pool._closing = True
    assert pool.is_closing()
    with pytest.raises(asyncpg.InterfaceError, match="closing"):
        await pool.acquire()
    pool.terminate()


async def test_a_place_handed_out_is_as_asyncpg_leaves_it(postgres: RotatingPostgres) -> None:
    account = postgres.pair.odd
    assert account is not None
    login = {"user": account.username, "password": account.password.reveal()}
    limits: dict[str, Any] = {"min_size": 1, "max_size": 1, "max_inactive_connection_lifetime": 0}
    async with asyncpg.create_pool(postgres.dsn, **login, **limits) as pool:

        async def state(acquire: Callable[[Any], Awaitable[Any]]) -> dict[str, object]:
            place = next_place(pool)
            proxy = await acquire(place)
            assert place._proxy is proxy
            assert raw_connection(proxy)._proxy is proxy
            assert not place._in_use.done()
            slots = {name: getattr(place, name) for name in type(place).__slots__ if hasattr(place, name)}
            await pool.release(proxy)
            return {name: value for name, value in slots.items() if name not in ("_proxy", "_in_use")}

        async def ours(place: Any) -> Any:
            return hand_out(place)

        assert await state(ours) == await state(lambda place: place.acquire())
        place = next_place(pool)  # once released, it is free for good
        assert place._in_use is place._proxy is None
        put_back(place)


async def test_a_query_counts_as_answered_once_the_server_is_ready_for_the_next(make_pool: MakePool) -> None:
    async with make_pool(max_size=1) as pool, pool.acquire() as proxy:
        con = raw_connection(proxy)
        pooled = pool._connections.by_connection[con]
        before = queries_run(con)

        def is_answered() -> bool:
            return pooled.has_answered(queries_run(con), before)

        for run in (proxy.execute, proxy.fetchval, proxy.fetch):
            running = asyncio.ensure_future(run("select pg_sleep(0.02), 'a' from generate_series(1, 2)"))
            await asyncio.sleep(0)
            assert not is_answered() or con._stmt_exclusive_section._acquired  # it may still be preparing
            await running
            assert is_answered()
        with pytest.raises(asyncpg.DivisionByZeroError):
            await proxy.execute("select 1 / 0")
        assert is_answered()
        await proxy.prepare("select 1")  # asyncpg does not count what may follow
        assert not is_answered()


async def test_a_busy_check_asks_the_server_nothing(make_pool: MakePool) -> None:
    async with make_pool(max_size=1) as pool, pool.acquire() as proxy:
        con = raw_connection(proxy)
        is_busy = busy_check(con)
        assert not is_busy()
        running = asyncio.create_task(proxy.fetchval("select 1 from pg_sleep(0.05)"))
        await asyncio.sleep(0)
        assert is_busy()
        assert await running == 1
        assert not is_busy()


async def test_what_keeps_a_connection_busy_is_counted_or_found_by_the_cheap_half_of_the_check(
    make_pool: MakePool,
) -> None:
    async with make_pool(max_size=1) as pool, pool.acquire() as proxy:
        con = raw_connection(proxy)
        is_busy = busy_check(con)
        statement = await proxy.prepare("select 2 from pg_sleep(0.01)")

        async def copy_out() -> None:
            await proxy.copy_from_query("select 3", output=io.BytesIO())

        async def open_cursor() -> None:
            with contextlib.suppress(asyncpg.NoActiveSQLTransactionError):
                await proxy.cursor("select 4")

        for use in (
            lambda: proxy.execute("select 1"),
            lambda: proxy.fetch("select 1"),
            lambda: proxy.fetchval("select $1::int", 1),
            lambda: proxy.executemany("select $1::int", [(1,), (2,)]),
            lambda: proxy.prepare("select 5"),
            statement.fetch,
            copy_out,
            open_cursor,
            lambda: proxy.add_listener("channel", print),
        ):
            before = queries_run(con)
            assert not is_busy(False)
            running = asyncio.ensure_future(use())
            await asyncio.sleep(0)
            while not running.done():
                assert queries_run(con) != before or is_busy(False)
                await asyncio.sleep(0)
            await running
        await proxy.remove_listener("channel", print)
