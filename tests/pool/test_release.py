"""The release path: a permit is returned once, and the session is reset; a `deferred` release returns before that."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

import aiopqr
from aiopqr.events import ConnectionLost, ResetFailed
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually

both = pytest.mark.parametrize("mode", ["full", "deferred"])
SLOW = "SELECT pg_sleep(0.3); RESET ALL"


def connection_class(query: str) -> type[Any]:
    class Custom(asyncpg.Connection):  # type: ignore[type-arg]
        def get_reset_query(self) -> str:
            return query

    return Custom


def stand_ins_are_used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries that bypass asyncpg."""
    from aiopqr._pool.stand_in import StandIn

    queries: list[str] = []
    reset = StandIn.reset

    def counted(self: StandIn, query: str, done: Any) -> None:
        queries.append(query)
        reset(self, query, done)

    monkeypatch.setattr(StandIn, "reset", counted)
    return queries


async def test_a_connection_terminated_by_the_server_gives_its_permit_back_once(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(max_size=2) as pool:
        for _ in range(5):
            con = await pool.acquire()
            await postgres.terminate()
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError)):
                await con.fetchval("select 1")
            await pool.release(con)
        held = [await pool.acquire(timeout=2), await pool.acquire(timeout=2)]
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.05)
        for con in held:
            await pool.release(con)


async def test_a_connection_lost_in_its_release_is_an_event_and_no_error(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    events: list[object] = []
    async with make_pool(max_size=1, listeners=[events.append]) as pool:
        con = await pool.acquire()
        assert await con.fetchval("select 1") == 1
        await postgres.terminate()
        await pool.release(con)
        assert await pool.fetchval("select 1") == 1
    assert pool.stats().lost == len([event for event in events if isinstance(event, ConnectionLost)])


async def test_a_connection_closed_by_its_user_makes_room(make_pool: MakePool) -> None:
    async with make_pool(max_size=1) as pool:
        for _ in range(3):
            con = await pool.acquire(timeout=2)
            await con.close()
            await pool.release(con)
        assert await pool.fetchval("select 1") == 1
        assert pool.stats().in_use == 0


async def test_nothing_is_reset_where_nothing_ran(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool(min_size=1, max_size=1) as pool:
        async with pool.acquire() as con:
            await con.execute("set application_name = 'kept'")
            pid = con.get_server_pid()
        async with pool.acquire() as con:
            assert con.get_server_pid() == pid
            assert await con.fetchval("show application_name") == ""
        before = await queries_of(postgres, pid)
        async with pool.acquire():
            pass
        assert await queries_of(postgres, pid) == before


async def queries_of(postgres: RotatingPostgres, pid: int) -> object:
    return [row["query_start"] for row in await postgres.sessions() if row["pid"] == pid]


@pytest.mark.parametrize("mode", ["full", "transaction"])
async def test_an_open_transaction_is_rolled_back_on_release(make_pool: MakePool, mode: str) -> None:
    handled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: handled.append(context))
    async with make_pool(max_size=1, session_reset=mode) as pool:
        async with pool.acquire() as con:
            await con.execute("begin")
        async with pool.acquire() as con:
            assert not con.is_in_transaction()
    asyncio.get_running_loop().set_exception_handler(None)
    assert len(handled) == 1  # as asyncpg reports it


async def test_session_reset_transaction_leaves_settings_alone(make_pool: MakePool) -> None:
    async with make_pool(max_size=1, session_reset="transaction") as pool:
        async with pool.acquire() as con:
            await con.execute("set application_name = 'kept'")
        assert await pool.fetchval("show application_name") == "kept"


async def test_a_copy_that_changed_the_session_is_reset_too(make_pool: MakePool) -> None:
    async with make_pool(max_size=1) as pool:
        async with pool.acquire() as con:
            await con.copy_from_query(
                "select set_config('application_name', 'leaked', false)", output=lambda _: nothing()
            )
        assert await pool.fetchval("show application_name") == ""


async def nothing() -> None:
    pass


@both
async def test_the_next_checkout_finds_nothing_of_the_last(
    make_pool: MakePool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = stand_ins_are_used(monkeypatch)
    async with make_pool(session_reset=mode, min_size=1, max_size=1) as pool:
        for _ in range(3):
            async with pool.acquire() as con:
                await con.execute("SET work_mem = '1MB'; LISTEN news; SELECT pg_advisory_lock(1)")
                await con.execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
            async with pool.acquire() as con:
                assert await con.fetchval("SHOW work_mem") == "4MB"
                assert await con.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0
                assert await con.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
                assert await con.fetchval("SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0
    assert len(queries) >= 5


async def test_a_deferred_release_returns_before_the_reset_and_nobody_gets_the_connection_before_it(
    make_pool: MakePool,
) -> None:
    async with make_pool(session_reset="deferred", max_size=1, connection_class=connection_class(SLOW)) as pool:
        con = await pool.acquire()
        await con.execute("SET work_mem = '1MB'")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await pool.release(con)
        assert loop.time() - begun < 0.2
        stats = pool.stats()
        assert (stats.size, stats.idle, stats.in_use, stats.resetting) == (1, 0, 1, 1)
        async with pool.acquire() as con:
            assert loop.time() - begun >= 0.29
            assert await con.fetchval("SHOW work_mem") == "4MB"
        await eventually(lambda: pool.stats().idle == 1)
        assert pool.stats().resetting == 0


async def test_a_released_connection_is_out_of_reach_at_once(make_pool: MakePool) -> None:
    async with make_pool(session_reset="deferred", max_size=1, connection_class=connection_class(SLOW)) as pool:
        con = await pool.acquire()
        statement = await con.prepare("SELECT 1")
        await pool.release(con)
        with pytest.raises(asyncpg.InterfaceError, match="released"):
            await con.fetchval("SELECT 1")
        with pytest.raises(asyncpg.InterfaceError, match="released"):
            await statement.fetchval()
        await pool.release(con)  # again: nothing


async def test_while_a_connection_is_reset_an_acquirer_waits_for_it_rather_than_for_a_new_one(
    make_pool: MakePool,
) -> None:
    async with make_pool(session_reset="deferred", min_size=1, max_size=4) as pool:
        for _ in range(50):
            async with pool.acquire() as con:
                await con.fetchval("SELECT 1")
        assert pool.stats().size == 1


async def test_an_acquirer_loses_patience_with_a_slow_reset(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._pool.supply.SILENCE", 0.05)
    slow = connection_class("SELECT pg_sleep(2)")
    async with make_pool(session_reset="deferred", min_size=1, max_size=2, connection_class=slow) as pool:
        await pool.fetchval("SELECT 1")
        async with asyncio.timeout(1.5), pool.acquire():
            assert pool.stats().size == 2


async def test_an_idle_connection_that_needs_a_check_is_there_before_a_reset_that_takes_long(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._pool.supply.SILENCE", 60.0)
    slow = connection_class("SELECT pg_sleep(5)")
    async with make_pool(
        session_reset="deferred", min_size=2, max_size=2, check_after=0.001, connection_class=slow, acquire_timeout=4.0
    ) as pool:
        await asyncio.sleep(0.01)
        con = await pool.acquire()
        first = con.get_server_pid()
        await con.execute("SELECT 1")
        await pool.release(con)
        async with pool.acquire() as con:
            assert con.get_server_pid() != first


async def test_a_deferred_release_rolls_an_open_transaction_back_before_it_returns(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(session_reset="deferred", max_size=2) as pool:
        await pool.execute("CREATE TABLE rows (id int)")
        con = await pool.acquire()
        await con.execute("BEGIN; LOCK TABLE rows")
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # asyncpg reports that a transaction was open
        await pool.release(con)
        loop.set_exception_handler(None)
        other = await postgres.connect("even")
        try:
            await other.execute("BEGIN; LOCK TABLE rows NOWAIT; ROLLBACK")
        finally:
            await other.close()


@both
async def test_cancelling_a_release_does_not_cancel_the_reset(make_pool: MakePool, mode: str) -> None:
    async with make_pool(session_reset=mode, max_size=1, connection_class=connection_class(SLOW)) as pool:
        con = await pool.acquire()
        await con.execute("SET work_mem = '1MB'")
        release = asyncio.create_task(pool.release(con))
        await asyncio.sleep(0)
        release.cancel()
        await asyncio.wait({release})
        async with pool.acquire() as con:
            assert await con.fetchval("SHOW work_mem") == "4MB"
        assert pool.stats().lost == 0


@both
async def test_a_reset_that_fails_closes_the_connection_and_is_raised_or_an_event(
    make_pool: MakePool, mode: str
) -> None:
    events: list[Any] = []
    broken = connection_class("SELECT no_such_column")
    async with make_pool(session_reset=mode, max_size=1, connection_class=broken, listeners=[events.append]) as pool:
        con = await pool.acquire()
        await con.execute("SELECT 1")
        if mode == "full":
            with pytest.raises(asyncpg.UndefinedColumnError):
                await pool.release(con)
        else:
            await pool.release(con)
            await eventually(lambda: [event for event in events if isinstance(event, ResetFailed)])
        await eventually(lambda: not pool.stats().size)
        async with pool.acquire(), asyncio.timeout(5):
            pass


@both
async def test_a_reset_that_takes_too_long_closes_the_connection(make_pool: MakePool, mode: str) -> None:
    events: list[Any] = []
    options = {"connection_class": connection_class("SELECT pg_sleep(1)"), "listeners": [events.append]}
    async with make_pool(session_reset=mode, max_size=1, reset_timeout=0.1, **options) as pool:
        con = await pool.acquire()
        await con.execute("SELECT 1")
        if mode == "full":
            with pytest.raises(TimeoutError, match="longer than"):
                await pool.release(con)
        else:
            await pool.release(con)
            await eventually(lambda: [event for event in events if isinstance(event, ResetFailed)])
            assert "longer than 0.1 s" in events[-1].error
        assert not pool.stats().size


@both
async def test_a_session_that_ends_in_its_reset_raises_nothing_and_is_counted_as_lost(
    make_pool: MakePool, mode: str, postgres: RotatingPostgres
) -> None:
    async with make_pool(session_reset=mode, max_size=1, connection_class=connection_class(SLOW)) as pool:
        con = await pool.acquire()
        pid = await con.fetchval("SELECT pg_backend_pid()")
        release = asyncio.create_task(pool.release(con))
        await eventually(lambda: pool.stats().resetting)
        await postgres.server.execute("SELECT pg_terminate_backend($1)", pid)
        await release
        await eventually(lambda: pool.stats().lost == 1)
        async with pool.acquire() as con:
            assert await con.fetchval("SELECT pg_backend_pid()") != pid


@both
async def test_close_waits_for_resets_and_terminate_does_not(make_pool: MakePool, mode: str) -> None:
    async with make_pool(session_reset=mode, connection_class=connection_class(SLOW)) as pool:
        con = await pool.acquire()
        await con.execute("SELECT 1")
        releasing = asyncio.create_task(pool.release(con))
        await asyncio.sleep(0.01)
        await pool.close()
        await releasing
        assert pool.stats().lost == 0
    async with make_pool(session_reset=mode, connection_class=connection_class("SELECT pg_sleep(1)")) as pool:
        con = await pool.acquire()
        await con.execute("SELECT 1")
        releasing = asyncio.create_task(pool.release(con))
        await asyncio.sleep(0.01)
        pool.terminate()
        async with asyncio.timeout(0.5):
            await releasing


@both
async def test_terminate_during_a_reset_loses_no_connection(make_pool: MakePool, mode: str) -> None:
    events: list[Any] = []
    pool = await make_pool(session_reset=mode, connection_class=connection_class(SLOW), listeners=[events.append])
    con = await pool.acquire()
    await con.execute("SELECT 1")
    releasing = asyncio.create_task(pool.release(con))
    await asyncio.sleep(0.01)
    pool.terminate()
    await releasing
    await asyncio.sleep(0.01)
    assert [event for event in events if isinstance(event, ConnectionLost | ResetFailed)] == []
    assert pool.stats().lost == 0


@both
async def test_a_connection_to_which_the_server_said_goodbye_is_not_handed_out(
    make_pool: MakePool, mode: str, postgres: RotatingPostgres
) -> None:
    events: list[Any] = []
    async with make_pool(session_reset=mode, min_size=0, max_size=3, listeners=[events.append]) as pool:
        held = [await pool.acquire() for _ in range(3)]
        for con in held:
            await con.execute("SELECT 1")
            await pool.release(con)
        await eventually(lambda: pool.stats().idle == 3)
        await postgres.terminate()
        await eventually(lambda: len([event for event in events if isinstance(event, ConnectionLost)]) == 3)
        assert {event.when for event in events if isinstance(event, ConnectionLost)} == {"idle"}
        assert pool.stats().size == 0
        assert await pool.fetchval("SELECT 1") == 1


@both
async def test_a_reset_of_the_user_s_own_and_an_overridden_reset_go_by_asyncpg(
    make_pool: MakePool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = stand_ins_are_used(monkeypatch)

    class Own(asyncpg.Connection):  # type: ignore[type-arg]
        async def reset(self, *, timeout: float | None = None) -> None:
            calls.append("class")
            await super().reset(timeout=timeout)

    async def hook(con: Any) -> None:
        calls.append("hook")

    for options in ({"connection_class": Own}, {"reset": hook}):
        calls: list[str] = []
        async with make_pool(session_reset=mode, **options) as pool:
            await pool.fetchval("SELECT 1")
        assert len(calls) == 1
    assert queries == []


async def test_an_unknown_way_of_resetting_is_refused() -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="deferred"):
        aiopqr.create_pool(
            "postgresql://x/y",
            credentials=aiopqr.CredentialPair.single(aiopqr.Credential("a", "b")),
            session_reset="later",
        )
