"""What once broke the pool: hooks that misbehave, servers that hang up, and moments that are hard to hit."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from typing import Any

import asyncpg
import pytest

import aiopqr
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually


async def test_what_setup_changed_is_reset_though_nothing_else_ran(make_pool: MakePool) -> None:
    tenants = ["a", ""]

    async def setup(con: asyncpg.Connection) -> None:
        if tenant := tenants.pop(0):
            await con.execute(f"set app.tenant = {tenant}")

    async with make_pool(max_size=1, setup=setup) as pool:
        async with pool.acquire():
            pass
        assert not await pool.fetchval("select current_setting('app.tenant', true)")


async def test_a_connection_that_ends_during_setup_costs_no_permit(make_pool: MakePool) -> None:
    breaks = [True, False]

    async def setup(con: asyncpg.Connection) -> None:
        if breaks.pop(0):
            await con.close()
            for _ in range(3):  # long enough for the pool to notice it
                await asyncio.sleep(0)

    async with make_pool(max_size=1, setup=setup) as pool:
        with pytest.raises(asyncpg.ConnectionDoesNotExistError, match="during setup="):
            await pool.acquire()
        async with pool.acquire(timeout=5) as con:
            assert await con.fetchval("select 1") == 1


@pytest.mark.parametrize("hook", ["init", "connect"])
async def test_a_connection_that_was_closed_before_its_first_use_is_forgotten(
    make_pool: MakePool, postgres: RotatingPostgres, hook: str
) -> None:
    async def init(con: asyncpg.Connection) -> None:
        con.terminate()

    async def connect(*args: Any, **kwargs: Any) -> Any:
        con = await asyncpg.connect(*args, **kwargs)
        con.terminate()
        return con

    raised = {"init": asyncpg.ConnectionDoesNotExistError, "connect": aiopqr.AcquireTimeout}  # a login is tried again
    async with make_pool(max_size=1, **{hook: init if hook == "init" else connect}) as pool:
        with pytest.raises(raised[hook]):
            await pool.acquire(timeout={"init": 10, "connect": 0.5}[hook])
        assert "0 of 1 open" in repr(pool)
        await postgres.rotate_both()
        await pool.refresh()
        async with asyncio.timeout(5):
            await pool.drain()


@pytest.mark.parametrize("ends", ["timeout", "cancellation"])
@pytest.mark.parametrize("scram_cache", [True, False])
async def test_a_login_that_is_cut_short_leaves_no_password_in_its_traceback(
    make_pool: MakePool, postgres: RotatingPostgres, scram_cache: bool, ends: str
) -> None:
    secrets = [credential.password.reveal() for credential in postgres.pair.credentials()]
    called = asyncio.Event()

    async def swallow(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await over.wait()
        writer.close()

    over = asyncio.Event()
    black_hole = await asyncio.start_server(swallow, "127.0.0.1")
    dsn = f"postgresql://127.0.0.1:{black_hole.sockets[0].getsockname()[1]}/any"
    async with make_pool(dsn=dsn, scram_cache=scram_cache) as pool:
        acquiring = asyncio.create_task(pool.acquire(timeout=0.1 if ends == "timeout" else None).__aenter__())
        if ends == "cancellation":
            await called.wait()
            acquiring.cancel()
        with pytest.raises((aiopqr.AcquireTimeout, asyncio.CancelledError)) as raised:
            await acquiring
    over.set()
    black_hole.close()
    link: BaseException | None = raised.value
    while link:
        frames = [frame for frame, _ in traceback.walk_tb(link.__traceback__) if "test_" not in frame.f_code.co_name]
        shown = [repr(value) for frame in frames for value in frame.f_locals.values()]
        assert not [text for text in shown if any(secret in text for secret in secrets)]
        link = link.__cause__ or link.__context__


async def test_spares_that_end_at_once_are_opened_ever_more_slowly(make_pool: MakePool) -> None:
    born: list[float] = []

    async def init(con: asyncpg.Connection) -> None:
        loop = asyncio.get_running_loop()
        born.append(loop.time())
        if len(born) > 1:
            loop.call_later(0.001, con.terminate)  # like a proxy that accepts a login before it looks for its server

    async with make_pool(min_size=1, max_size=1, max_lifetime=0.05, init=init) as pool, pool.acquire() as con:
        await eventually(lambda: len(born) > 3)
        assert pool.stats().replacements.delayed >= 2
        assert await con.fetchval("select 1") == 1
    assert born[2] - born[1] >= 0.5
    assert born[3] - born[2] >= 1.0


class NoException(BaseException):
    """Like those of test frameworks and other concurrency libraries."""


@pytest.mark.parametrize("error", [asyncio.CancelledError, NoException])
async def test_nothing_that_a_hook_raises_ends_the_replacement(make_pool: MakePool, error: type[BaseException]) -> None:
    born = 0

    async def init(_con: asyncpg.Connection) -> None:
        nonlocal born
        born += 1
        if born == 2:
            raise error  # a CancelledError where it awaits its own task that was cancelled

    async with make_pool(min_size=1, max_size=1, max_lifetime=0.05, init=init) as pool:
        await eventually(lambda: pool.stats().replacements.done)
        assert pool.stats().replacements.delayed == 1


async def test_terminate_ends_a_spare_that_is_about_to_be_closed(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, max_size=1, max_lifetime=0.05) as pool, pool.acquire():
        await eventually(lambda: pool._replacement.spare)
        spare = pool._replacement.spare
        pool._replacement.discard_spare()
        pool.terminate()
        assert spare
        assert spare.con.is_closed()


@pytest.mark.parametrize("automatic", [True, False])
async def test_a_connect_that_was_under_way_in_a_drain_is_drained_too(
    make_pool: MakePool, postgres: RotatingPostgres, automatic: bool
) -> None:
    under_way, drained = asyncio.Event(), asyncio.Event()

    async def init(_con: asyncpg.Connection) -> None:
        under_way.set()
        await drained.wait()

    async with make_pool(max_size=1, init=init, drain_on_rotation=automatic) as pool:
        acquiring = asyncio.create_task(pool.acquire().__aenter__())
        await under_way.wait()
        await postgres.rotate_both()
        await pool.refresh()
        if not automatic:
            await pool.drain()
        drained.set()
        await pool.release(await acquiring)
        await eventually(lambda: pool.stats().replacements.why == {"superseded": 1})


MODES = pytest.mark.parametrize("mode", ["full", "transaction"])


@MODES
@pytest.mark.parametrize("method", ["execute", "prepare"])  # asyncpg does not count what is only prepared
@pytest.mark.parametrize("acquiring", [{}, {"timeout": 5.0}], ids=str)
@pytest.mark.parametrize("more", [{}, {"max_queries": 1000}], ids=str)
async def test_a_connection_released_while_a_query_still_runs_on_it_is_not_handed_on(
    make_pool: MakePool, mode: str, method: str, acquiring: dict[str, Any], more: dict[str, Any]
) -> None:
    async with make_pool(max_size=1, session_reset=mode, **more) as pool:
        con = await pool.acquire(**acquiring)
        forgotten = asyncio.create_task(getattr(con, method)("select pg_sleep(1)"))
        await asyncio.sleep(0)  # it has been sent
        try:
            await pool.release(con)
        except asyncpg.InterfaceError:  # another operation is in progress
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await forgotten
        else:
            assert method == "prepare"
            assert forgotten.done()  # while the release was in progress
        assert await pool.fetchval("select 1") == 1


@MODES
async def test_what_is_prepared_in_one_checkout_never_runs_in_the_next(make_pool: MakePool, mode: str) -> None:
    async with make_pool(max_size=1, session_reset=mode) as pool:
        for turns in range(60):  # in one of these turns, the answer is there, and its task has not continued
            con = await pool.acquire()
            left = asyncio.create_task(con.fetch(f"select {turns}, $1::int", turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            with contextlib.suppress(asyncpg.InterfaceError):
                await pool.release(con)
            async with pool.acquire() as next_con:
                assert await next_con.fetchval("select 1") == 1
            await asyncio.wait({left})
            left.exception()


@MODES
@pytest.mark.parametrize("method", ["execute", "prepare"])
async def test_a_release_waits_for_the_end_of_what_was_just_cancelled(
    make_pool: MakePool, mode: str, method: str
) -> None:
    async with make_pool(max_size=1, session_reset=mode) as pool:
        con = await pool.acquire()
        backend = con.get_server_pid()
        cancelled = asyncio.create_task(getattr(con, method)("select pg_sleep(1)"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await pool.release(con)
        async with pool.acquire() as again:
            assert again.get_server_pid() == backend
        assert cancelled.cancelled()


@MODES
@pytest.mark.parametrize("method", ["fetch", "prepare"])
async def test_a_transaction_that_asyncpg_believes_open_takes_no_place_away(
    make_pool: MakePool, mode: str, method: str
) -> None:
    async def transact(con: asyncpg.Connection) -> None:
        async with con.transaction():
            pass

    async with make_pool(max_size=1, session_reset=mode) as pool:
        async with pool.acquire() as con:
            query = getattr(con, method)("select pg_sleep(0.02)")
            await asyncio.gather(query, transact(con), return_exceptions=True)
        assert await pool.fetchval("select 1", timeout=5) == 1
        con = await pool.acquire()
        await con.transaction().start()
        await con.execute("rollback")
        # asyncpg reports what it rolls back to the loop's exception handler
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        await pool.release(con)
        assert await pool.fetchval("select 1", timeout=5) == 1


@MODES
async def test_a_second_release_beside_the_first_takes_nothing_from_the_next(make_pool: MakePool, mode: str) -> None:
    async with make_pool(max_size=1, session_reset=mode) as pool:
        for first, second in (({"timeout": 5.0}, {}), ({}, {"timeout": 5.0}), ({}, {})):
            con = await pool.acquire()
            await con.execute("select 1")
            releases = [asyncio.create_task(pool.release(con, **how)) for how in (first, second)]
            async with pool.acquire() as other:
                await other.execute("select pg_sleep(0.02)")
                await asyncio.gather(*releases)
                assert await other.fetchval("select 1") == 1
            assert pool.stats().in_use == 0


async def test_no_error_of_a_reset_hook_keeps_its_permit(make_pool: MakePool) -> None:
    async def reset(con: asyncpg.Connection) -> None:
        raise NoException

    async with make_pool(max_size=1, reset=reset) as pool:
        for _ in range(2):
            con = await pool.acquire(timeout=5)
            with pytest.raises(NoException):
                await pool.release(con)
        assert (pool.stats().in_use, pool.stats().size) == (0, 0)


async def test_a_reset_hook_that_takes_too_long_is_ended_and_touches_no_other_checkout(make_pool: MakePool) -> None:
    slow = True
    ended = asyncio.Event()

    async def reset(con: asyncpg.Connection) -> None:
        if slow:
            try:
                await asyncio.Event().wait()  # for something that is not the connection
            finally:
                ended.set()

    async with make_pool(max_size=1, reset=reset, reset_timeout=0.1) as pool:
        con = await pool.acquire()
        releasing = asyncio.create_task(pool.release(con))
        async with pool.acquire() as other:
            assert ended.is_set()
            with pytest.raises(TimeoutError, match=r"a release took longer than 0\.1 s"):
                await releasing
            assert await other.fetchval("select 1") == 1
            slow = False
        assert await pool.fetchval("select 1") == 1


@pytest.mark.parametrize("raises", [False, True])
async def test_a_connection_that_ends_in_its_reset_hook_keeps_its_place_until_the_hook_has_ended(
    make_pool: MakePool, raises: bool
) -> None:
    is_lost, go_on = asyncio.Event(), asyncio.Event()

    async def reset(con: asyncpg.Connection) -> None:
        if not is_lost.is_set():
            con._transport.abort()
            try:
                await con.execute("select 1")
            except asyncpg.ConnectionDoesNotExistError:
                is_lost.set()
                await go_on.wait()
                if raises:
                    raise

    async def insert() -> None:
        async with pool.acquire() as con, con.transaction():
            await asyncio.wait({releasing})
            await con.execute("create temp table mine (id int)")

    async with make_pool(max_size=2, reset=reset) as pool:
        held, lost = await pool.acquire(), await pool.acquire()
        await lost.execute("select 1")
        releasing = asyncio.create_task(pool.release(lost))
        await is_lost.wait()
        inserting = asyncio.create_task(insert())
        await asyncio.wait({inserting}, timeout=0.1)
        go_on.set()
        await releasing
        await inserting
        await pool.release(held)
        await both_permits_are_there(pool)


async def both_permits_are_there(pool: aiopqr.AlternatingPool) -> None:
    async with pool.acquire(timeout=5) as one, pool.acquire(timeout=5) as other:
        assert await one.fetchval("select 1") == await other.fetchval("select 1") == 1
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.05)
    assert pool.stats().in_use == 0


@pytest.mark.parametrize("limit", [{}, {"reset_timeout": None}])
async def test_close_with_a_timeout_and_terminate_end_a_reset_hook_that_hangs(
    make_pool: MakePool, limit: dict[str, Any]
) -> None:
    for how in ("close", "terminate"):
        ended = asyncio.Event()

        async def reset(con: asyncpg.Connection, ended: asyncio.Event = ended) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        pool = await make_pool(max_size=1, reset=reset, **limit)
        con = await pool.acquire()
        releasing = asyncio.create_task(pool.release(con))
        await asyncio.sleep(0.01)
        if how == "close":
            await pool.close(timeout=0.05)
            assert ended.is_set()
        else:
            pool.terminate()
        async with asyncio.timeout(5):
            await releasing
        assert ended.is_set()


async def test_an_init_that_hangs_delays_the_replacement_and_is_told(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._pool.connections.INIT_TIMEOUT", 0.2)
    hangs = False

    async def init(_con: asyncpg.Connection) -> None:
        if hangs:
            await asyncio.Event().wait()

    async with make_pool(min_size=1, max_size=1, max_lifetime=0.05, init=init) as pool:
        hangs = True
        await eventually(lambda: pool.stats().replacements.delayed)
        hangs = False
        await eventually(lambda: pool.stats().replacements.done)


async def test_an_error_of_init_that_is_no_loss_of_its_connection_is_raised_at_once(make_pool: MakePool) -> None:
    begun = 0

    async def init(_con: asyncpg.Connection) -> None:
        nonlocal begun
        begun += 1
        raise ConnectionResetError("of something else")

    async with make_pool(max_size=1, init=init) as pool:
        with pytest.raises(ConnectionResetError):
            await pool.acquire()
    assert begun == 1


async def test_an_acquire_whose_connection_comes_just_too_late_is_told_that_the_pool_is_closed(
    make_pool: MakePool,
) -> None:
    async def init(_con: asyncpg.Connection) -> None:
        asyncio.get_running_loop().call_soon(pool.terminate)  # when the connect is done, and nobody knows yet

    async with make_pool(max_size=1, init=init) as pool:
        with pytest.raises(aiopqr.PoolClosing):
            await pool.acquire()


async def test_a_cancelled_acquire_is_cancelled_though_connect_returned_junk(make_pool: MakePool) -> None:
    async def connect(*_args: Any, **_kwargs: Any) -> object:
        asyncio.get_running_loop().call_soon(lambda: acquiring.cancel())  # when this has returned, and nobody knows yet
        return object()

    async with make_pool(max_size=1, connect=connect) as pool:
        acquiring = asyncio.create_task(pool.acquire().__aenter__())
        with pytest.raises(asyncio.CancelledError):
            await acquiring


async def test_a_timeout_of_a_fraction_of_a_millisecond_is_told_like_any_other(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    # uvloop's timers count in whole milliseconds, and may fire just before their time.
    over = asyncio.Event()

    async def swallow(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    black_hole = await asyncio.start_server(swallow, "127.0.0.1")
    dsn = f"postgresql://127.0.0.1:{black_hole.sockets[0].getsockname()[1]}/any"
    try:
        async with make_pool(dsn=dsn) as pool:
            for micros in range(0, 10_000, 370):
                with pytest.raises(aiopqr.AcquireTimeout):
                    await pool.acquire(timeout=0.01 + micros / 1e6)
        async with aiopqr.Connector(dsn, credentials=postgres.source, ssl="disable") as connector:
            for micros in range(0, 10_000, 370):
                with pytest.raises(aiopqr.ConnectTimeout):
                    await connector.connect(timeout=0.01 + micros / 1e6)
    finally:
        over.set()
        black_hole.close()


async def test_a_connection_that_ends_without_a_place_leaves_its_room_where_the_pool_is_empty(
    make_pool: MakePool,
) -> None:
    async with make_pool(min_size=0, max_size=1) as pool:
        spare = await pool._connections.open_spare()
        assert pool._connections.room == 1
        spare.con.terminate()
        await eventually(lambda: pool._connections.room == 2)


@pytest.mark.parametrize("measured", ["wait_time", "use_time", "connect_time"])
async def test_an_observer_that_raises_costs_no_connection(
    make_pool: MakePool, postgres: RotatingPostgres, measured: str
) -> None:
    def broken(seconds: float) -> None:
        raise RuntimeError("metrics backend is down")

    async with make_pool(max_size=1) as pool:
        histogram = getattr(pool.connector if measured == "connect_time" else pool, measured)
        histogram.observers += (broken,)
        for _ in range(2):
            async with pool.acquire(timeout=5) as con:
                assert await con.fetchval("select 1") == 1
        assert len(await postgres.sessions()) == 1
