"""If ``target_session_attrs`` requires that a server accepts writes, nobody gets a connection to one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest

import aiopqr
from aiopqr._pool.writers import LOOK_EVERY, WriterWatch
from aiopqr.events import Event, NotWritable
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually


@asynccontextmanager
async def read_only(postgres: RotatingPostgres) -> AsyncIterator[None]:
    """The server accepts no writes, not even in sessions that are already open."""
    await postgres.server.configure(default_transaction_read_only=True)
    try:
        yield
    finally:
        await postgres.server.configure(default_transaction_read_only=None)


@pytest.fixture
def guarded(make_pool: MakePool) -> Callable[..., Any]:
    return lambda **options: make_pool(**{"target_session_attrs": "read-write", "check_after": 0, **options})


async def fill(pool: aiopqr.AlternatingPool, count: int) -> set[int]:
    """Open ``count`` connections, and leave them idle. Returns their backends."""
    connections = [await pool.acquire() for _ in range(count)]
    for con in connections:
        await pool.release(con)
    return {con.get_server_pid() for con in pool_connections(pool)}


def pool_connections(pool: aiopqr.AlternatingPool) -> list[Any]:
    return [pooled.con for pooled in pool._connections]


async def acquired(pool: aiopqr.AlternatingPool) -> Any:
    return await pool.acquire()


async def write(pool: aiopqr.AlternatingPool) -> None:
    await pool.execute("create table if not exists t ()")


async def write_after(pool: aiopqr.AlternatingPool, statement: str) -> None:
    async with pool.acquire() as con:
        await con.execute(statement)
        await con.execute("create table t ()")


async def write_wrapped(pool: aiopqr.AlternatingPool, wrap: Callable[[Exception], Exception]) -> None:
    async with pool.acquire() as con:
        try:
            await con.execute("create table t ()")
        except asyncpg.PostgresError as exc:
            raise wrap(exc) from exc


async def test_after_one_failed_write_every_connection_is_closed_unused(
    guarded: Callable[..., Any], postgres: RotatingPostgres
) -> None:
    events: list[Event] = []
    async with guarded(listeners=[events.append]) as pool:
        before = await fill(pool, 3)
        async with read_only(postgres):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await write(pool)
            await eventually(lambda: pool.get_size() == 0)
        assert pool.stats().not_writable == 3
        reports = [event for event in events if isinstance(event, NotWritable)]
        address = f"{postgres.server.host}:{postgres.server.port}"
        assert [(event.server, address in str(event)) for event in reports] == [(address, True)]
        await write(pool)
        assert not before & {con.get_server_pid() for con in pool_connections(pool)}


async def test_a_failed_write_in_a_group_or_behind_another_error_counts(
    guarded: Callable[..., Any], postgres: RotatingPostgres
) -> None:
    async with guarded() as pool:
        for wrap in (lambda exc: ExceptionGroup("", [ValueError(), exc]), lambda exc: RuntimeError()):
            await fill(pool, 1)
            async with read_only(postgres):
                with pytest.raises((ExceptionGroup, RuntimeError)):
                    await write_wrapped(pool, wrap)
                await eventually(lambda: pool.get_size() == 0)


async def test_what_the_server_reports_is_a_sign_after_an_explicit_release(
    guarded: Callable[..., Any], postgres: RotatingPostgres
) -> None:
    async with guarded() as pool:
        await fill(pool, 2)
        async with read_only(postgres):
            con = await pool.acquire()
            await con.fetchval("select 1")
            await asyncio.sleep(0.25)  # between two looks
            await pool.release(con)
            await eventually(lambda: pool.get_size() == 0)


async def test_a_connection_in_use_is_left_alone_until_its_release(
    guarded: Callable[..., Any], postgres: RotatingPostgres
) -> None:
    async with guarded() as pool:
        await fill(pool, 2)
        held = await pool.acquire()
        async with read_only(postgres):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await write(pool)
            await eventually(lambda: pool.stats().not_writable == 1)
            assert await held.fetchval("select 1") == 1
            await pool.release(held)
            await eventually(lambda: pool.stats().not_writable == 2)


async def test_a_connection_whose_init_is_under_way_meanwhile_is_asked_before_its_first_use(
    guarded: Callable[..., Any], postgres: RotatingPostgres
) -> None:
    slow, begun, go_on = False, asyncio.Event(), asyncio.Event()
    waiting: list[asyncio.Task[Any]] = []

    async def init(_: asyncpg.Connection) -> None:
        if slow:
            begun.set()
            await go_on.wait()

    async with guarded(init=init, max_size=2) as pool:
        await fill(pool, 1)
        slow = True
        async with AsyncExitStack() as until_then:

            async def write_once_another_is_being_opened() -> None:
                async with pool.acquire() as held:
                    waiting.append(asyncio.create_task(acquired(pool)))
                    await begun.wait()
                    await until_then.enter_async_context(read_only(postgres))
                    await held.execute("create table t ()")

            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await write_once_another_is_being_opened()
            await eventually(lambda: pool.stats().not_writable == 1)
            slow = False
            go_on.set()
            await eventually(lambda: pool.stats().not_writable == 2)
        con = await waiting[0]
        await con.execute("create table t ()")
        await pool.release(con)


@pytest.mark.parametrize("session_reset", ["full", "deferred", "transaction"])
async def test_a_users_own_read_only_transaction_or_session_closes_nothing(
    guarded: Callable[..., Any], session_reset: str
) -> None:
    async with guarded(session_reset=session_reset) as pool:
        before = await fill(pool, 3)
        for statement in ("begin read only", "set default_transaction_read_only = on"):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await write_after(pool, statement)
            async with asyncio.timeout(5):
                while any(pooled.watch.is_doubted for pooled in pool._connections):
                    await asyncio.sleep(0.005)
            assert {con.get_server_pid() for con in pool_connections(pool)} == before
        assert pool.stats().not_writable == 0


async def test_a_primary_may_start_its_transactions_read_only(
    guarded: Callable[..., Any], postgres: RotatingPostgres
) -> None:
    async with guarded(target_session_attrs="primary") as pool:
        before = await fill(pool, 1)
        async with read_only(postgres):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await write(pool)
            assert await pool.fetchval("select pg_backend_pid()") in before
        assert pool.stats().not_writable == 0


@pytest.mark.parametrize("where", ["dsn", "environment"])
async def test_the_dsn_and_the_environment_ask_for_it_too(
    make_pool: MakePool, postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    dsn = postgres.dsn
    if where == "dsn":
        dsn += ("&" if "?" in dsn else "?") + "target_session_attrs=read-write"
    else:
        monkeypatch.setenv("PGTARGETSESSIONATTRS", "read-write")
    async with make_pool(dsn=dsn) as pool:
        await fill(pool, 1)
        monkeypatch.undo()  # the test's own server asks for nothing
        async with read_only(postgres):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await write(pool)
            await eventually(lambda: pool.stats().not_writable == 1)


@pytest.mark.parametrize("options", [{"writer_guard": False}, {"target_session_attrs": "any"}], ids=repr)
async def test_it_can_be_turned_off_and_is_off_where_no_writer_is_asked_for(
    guarded: Callable[..., Any], postgres: RotatingPostgres, options: dict[str, Any]
) -> None:
    async with guarded(**options) as pool:
        before = await fill(pool, 1)
        async with read_only(postgres):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await write(pool)
            assert await pool.fetchval("select pg_backend_pid()") in before


async def test_a_check_of_an_idle_connection_asks_for_writes_too(
    guarded: Callable[..., Any], postgres: RotatingPostgres
) -> None:
    async with guarded(check_after=0.001) as pool:
        await fill(pool, 2)
        async with read_only(postgres):
            waiting = asyncio.create_task(write(pool))
            await eventually(lambda: pool.stats().not_writable == 2)
        await waiting


async def test_a_server_that_cannot_be_asked_keeps_its_connections(
    guarded: Callable[..., Any], postgres: RotatingPostgres
) -> None:
    await postgres.server.execute(
        "revoke execute on function pg_is_in_recovery() from public", database=postgres.database
    )
    async with guarded() as pool:
        before = await fill(pool, 1)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await write_after(pool, "begin read only")
        assert await pool.fetchval("select pg_backend_pid()") in before
        assert pool.stats().lost == 0


class Settings:
    """What a connection's server has reported."""

    in_hot_standby = "off"


def test_a_sign_counts_until_the_server_was_asked_after_it() -> None:
    watch = WriterWatch("", ("in_hot_standby",), Settings(), 10.0)
    watch.doubt(9.0)  # another connection's, from before this one was opened
    assert not watch.look(10.0)
    watch.doubt(11.0)
    assert watch.look(12.0)
    watch.asked_at = 11.5
    assert not watch.look(12.0)


def test_a_report_is_a_sign_once_and_is_looked_for_four_times_a_second() -> None:
    settings = Settings()
    watch = WriterWatch("", ("in_hot_standby", "reported_by_no_server"), settings, 0.0)
    assert not watch.look(0.0)
    settings.in_hot_standby = "on"
    assert not watch.look(LOOK_EVERY - 0.001)
    assert watch.look(LOOK_EVERY)
    watch.asked_at = 1.0
    assert not watch.look(2.0)
    settings.in_hot_standby = "off"
    assert not watch.look(3.0)
