"""Who opens a connection, who gets it, and what becomes of it if its acquirer is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import pytest

import aiopqr
from aiopqr._pool import _asyncpg
from aiopqr.events import ConnectionLost, LeakSuspected
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually


class Slow:
    """``connect=``: asyncpg's, once it may run."""

    def __init__(self) -> None:
        self.begun = 0
        self.may = asyncio.Event()

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.begun += 1
        await self.may.wait()
        return await asyncpg.connect(*args, **kwargs)


async def test_an_opening_outlives_its_acquirer_and_serves_the_next(make_pool: MakePool) -> None:
    slow = Slow()
    async with make_pool(connect=slow) as pool:
        for _ in range(3):
            with pytest.raises(aiopqr.AcquireTimeout):
                await pool.acquire(timeout=0.05)
        assert slow.begun == 1
        slow.may.set()
        assert await pool.fetchval("select 1", timeout=5) == 1
        assert slow.begun == 1


async def test_whoever_waits_for_an_opening_takes_what_is_released_before(make_pool: MakePool) -> None:
    slow = Slow()
    slow.may.set()
    async with make_pool(max_size=2, connect=slow) as pool:
        held = await pool.acquire()
        slow.may.clear()
        waiting = asyncio.create_task(pool.acquire(timeout=5).__aenter__())
        await eventually(lambda: slow.begun == 2)
        backend = held.get_server_pid()
        await pool.release(held)
        got = await waiting
        assert got.get_server_pid() == backend
        await pool.release(got)


async def test_those_who_wait_for_openings_are_served_in_order(make_pool: MakePool) -> None:
    slow, served, may_go = Slow(), [], asyncio.Event()
    async with make_pool(max_size=3, connect=slow) as pool:

        async def take(number: int) -> None:
            async with pool.acquire():
                served.append(number)
                await may_go.wait()

        takers = [asyncio.create_task(take(number)) for number in range(6)]
        await eventually(lambda: slow.begun == 3)
        slow.may.set()
        await eventually(lambda: len(served) == 3)
        assert sorted(served) == [0, 1, 2]
        may_go.set()
        await asyncio.gather(*takers)
        assert slow.begun == 3


async def test_close_ends_an_opening_that_nobody_waits_for(make_pool: MakePool) -> None:
    slow = Slow()
    async with make_pool(connect=slow) as pool:
        with pytest.raises(aiopqr.AcquireTimeout):
            await pool.acquire(timeout=0.05)
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_each_failed_opening_fails_the_one_who_caused_it(make_pool: MakePool) -> None:
    async def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise asyncpg.InvalidCatalogNameError("no such database")

    async with make_pool(connect=broken) as pool:
        for _ in range(3):
            outcomes = await asyncio.gather(*(pool.acquire() for _ in range(6)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {asyncpg.InvalidCatalogNameError}


async def test_connections_that_end_right_after_login_are_not_reopened_in_a_hurry(make_pool: MakePool) -> None:
    born = 0

    async def init(con: asyncpg.Connection) -> None:
        nonlocal born
        born += 1
        asyncio.get_running_loop().call_later(0.02, con.terminate)

    async with make_pool(min_size=4, init=init):
        await asyncio.sleep(1.5)
    assert 4 <= born <= 16


@pytest.fixture
def long_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr._pool.supply.BACKOFF_FIRST", 60.0)
    monkeypatch.setattr("aiopqr._pool.supply.BACKOFF_MAX", 60.0)


@pytest.mark.usefixtures("long_back_off")
async def test_nobody_waits_while_min_size_is_restored_slowly(make_pool: MakePool) -> None:
    async with make_pool(min_size=3, max_size=3) as pool:
        for _ in range(2):
            for pooled in tuple(pool._connections):
                pooled.con._transport.abort()  # as if the server had closed it
            await eventually(lambda: pool._queue.qsize() == 2)  # min_size is being restored, and holds a place
            async with asyncio.timeout(10):
                taken = await asyncio.gather(*(pool.acquire() for _ in range(3)))
            for con in taken:
                await pool.release(con)


async def _uses_it_up(pool: aiopqr.AlternatingPool) -> None:
    await pool.execute("select 1")


async def _expires_it(pool: aiopqr.AlternatingPool) -> None:
    async with pool.acquire():
        await pool.expire_connections()


async def _closes_it(pool: aiopqr.AlternatingPool) -> None:
    async with pool.acquire() as con:
        await con.close()


async def _breaks_its_hook(pool: aiopqr.AlternatingPool) -> None:
    with pytest.raises(ZeroDivisionError):
        async with pool.acquire() as con:
            await con.execute("select 1")


async def _lets_surplus_go(pool: aiopqr.AlternatingPool) -> None:
    held = [await pool.acquire() for _ in range(2)]
    for con in held:
        await pool.release(con)
    await eventually(lambda: pool.stats().size == 1)
    await _closes_it(pool)


async def fail(_con: object) -> None:
    raise ZeroDivisionError


@pytest.mark.usefixtures("long_back_off")
@pytest.mark.parametrize(
    ("ends", "options"),
    [
        (_uses_it_up, {"max_queries": 1}),
        (_expires_it, {}),
        (_closes_it, {}),
        (_breaks_its_hook, {"setup": fail}),
        (_breaks_its_hook, {"reset": fail}),
        (_lets_surplus_go, {"max_inactive_connection_lifetime": 0.05}),
    ],
)
async def test_min_size_is_restored_at_once_after_an_end_that_the_server_did_not_cause(
    make_pool: MakePool, ends: Any, options: dict[str, Any]
) -> None:
    async with make_pool(min_size=1, max_size=2, **options) as pool:
        await ends(pool)
        await eventually(lambda: pool.stats().size == 1)


@pytest.mark.usefixtures("long_back_off")
async def test_min_size_is_restored_at_once_if_the_last_connection_is_closed_right_after_a_surplus(
    make_pool: MakePool,
) -> None:
    async with make_pool(min_size=1, max_size=2, max_inactive_connection_lifetime=0.05) as pool:
        for con in [await pool.acquire() for _ in range(2)]:
            await pool.release(con)
        time.sleep(0.06)  # the event loop is late, and runs this task before it reports the end of the surplus
        pool._releases._idle_timer._look()
        assert pool.stats().size == 1
        await _closes_it(pool)
        await eventually(lambda: pool.stats().size == 1)


@pytest.mark.parametrize("check_after", [1.0, 1e-9])
async def test_an_acquirer_whose_own_connect_fails_takes_what_was_released_meanwhile(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, check_after: float
) -> None:
    monkeypatch.setattr("aiopqr._pool.supply.OWN_FIRST", 60.0)
    begun, may_fail = 0, asyncio.Event()

    async def init(_con: asyncpg.Connection) -> None:
        nonlocal begun
        begun += 1
        if begun > 1:
            await may_fail.wait()
            raise ZeroDivisionError

    async with make_pool(max_size=2, init=init, check_after=check_after) as pool:
        held = await pool.acquire()
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: begun == 2)
        await pool.release(held)
        may_fail.set()
        assert await waiting == 1


async def test_a_pool_keeps_to_its_own_event_loop(make_pool: MakePool) -> None:
    async with make_pool(min_size=1) as pool:
        con = await pool.acquire()
        raised: list[str] = []

        async def elsewhere() -> None:
            calls = (pool.acquire, pool.refresh, pool.drain, pool.expire_connections, pool.close)
            for call in (*calls, lambda: pool.release(con)):
                with pytest.raises(aiopqr.PoolError) as caught:
                    await call()
                raised.append(str(caught.value))

        def in_thread() -> None:
            asyncio.run(elsewhere())
            for call in (pool.stats, pool.terminate):  # as a sync endpoint would call them, without any loop
                with pytest.raises(aiopqr.PoolError) as caught:
                    call()
                raised.append(str(caught.value))

        thread = threading.Thread(target=in_thread)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(raised) == 8
        assert all("belongs to the event loop" in text for text in raised)
        await pool.release(con)
        assert await pool.fetchval("select 1") == 1


class Registering(asyncpg.Connection):
    known: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, dialect: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registering.known[dialect] = cls


class Mine(Registering, dialect="mine"):
    async def answer(self) -> Any:
        return await self.fetchval("select 42")


class Sealing(type(asyncpg.Connection)):  # type: ignore[misc]
    def __new__(cls, name: str, bases: Any, members: Any) -> Any:
        if name == "Sealed" and any(isinstance(base, Sealing) for base in bases):
            raise TypeError("sealed")
        return super().__new__(cls, name, bases, members)


class Sealed(asyncpg.Connection, metaclass=Sealing):
    pass


@pytest.mark.parametrize("kind", [Mine, Sealed])
async def test_a_connection_class_may_have_opinions_on_its_subclasses(make_pool: MakePool, kind: type) -> None:
    async with make_pool(connection_class=kind, max_size=1) as pool:
        async with pool.acquire() as con:
            assert isinstance(_asyncpg.raw_connection(con), kind)
            await con.execute("set application_name = 'leaked'")
        assert await pool.fetchval("show application_name") == ""
    assert Registering.known == {"mine": Mine}


class Proxied:
    """What a monitoring agent puts around asyncpg's protocol."""

    def __init__(self, protocol: Any, *, hides: bool) -> None:
        self._inner = protocol
        if not hides:
            self.__wrapped__ = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_inner"), name)


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("mode", ["full", "transaction"])
async def test_an_agents_proxy_around_the_protocol_is_no_obstacle(make_pool: MakePool, hides: bool, mode: str) -> None:
    async def connect(*args: Any, **kwargs: Any) -> Any:
        con: Any = await asyncpg.connect(*args, **kwargs)
        con._protocol = Proxied(con._protocol, hides=hides)
        return con

    async with make_pool(connect=connect, max_size=1, session_reset=mode) as pool:
        for _ in range(3):
            assert await pool.fetchval("select 1") == 1
        con = await pool.acquire()
        running = asyncio.create_task(con.execute("select pg_sleep(0.5)"))
        await asyncio.sleep(0.01)
        with pytest.raises(asyncpg.InterfaceError):
            await pool.release(con)
        await asyncio.wait({running})
        running.exception()
        assert await pool.fetchval("select 1") == 1


@pytest.fixture
async def own_processes(postgres: RotatingPostgres) -> None:
    """Skips if the server runs elsewhere. In a container, process numbers differ from those here."""
    con = await postgres.connect()
    title = Path(f"/proc/{con.get_server_pid()}/cmdline")
    is_here = title.exists() and postgres.database in title.read_text()
    await con.close()
    if not is_here:
        pytest.skip("the server's processes are not ours")


@contextlib.contextmanager
def stopped(backend: int) -> Iterator[None]:
    os.kill(backend, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(backend, signal.SIGCONT)


@pytest.mark.usefixtures("own_processes")
async def test_a_hung_backend_that_is_retired_holds_up_nobody(make_pool: MakePool) -> None:
    async with make_pool(min_size=1, max_size=1, max_lifetime=0.5, max_lifetime_jitter=0.0) as pool:
        con = await pool.acquire()
        backend = con.get_server_pid()
        await eventually(lambda: pool._replacement.spare and pool._event_loop.time() > con_deadline(pool))
        with stopped(backend):
            await pool.release(con)
            async with pool.acquire(timeout=1) as other:
                assert other.get_server_pid() != backend


def con_deadline(pool: aiopqr.AlternatingPool) -> float:
    (pooled,) = pool._connections
    return pooled.deadline


@pytest.mark.usefixtures("own_processes")
async def test_close_keeps_its_timeout_though_a_backend_hangs(make_pool: MakePool) -> None:
    pool = await make_pool(min_size=1, max_size=1)
    async with pool.acquire() as con:
        backend = con.get_server_pid()
    with stopped(backend):
        begun = time.monotonic()
        await pool.close(timeout=0.2)
        assert time.monotonic() - begun < 0.9


async def test_a_lost_connection_is_counted_though_its_release_was_cancelled(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    events: list[object] = []
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    async with make_pool(max_size=1, reset=reset_slowly, listeners=[events.append]) as pool:
        con = await pool.acquire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pool.release(con)
        await postgres.terminate()
        await eventually(lambda: pool.stats().lost == 1)
        gc.collect()
        assert await pool.fetchval("select 1", timeout=5) == 1
    asyncio.get_running_loop().set_exception_handler(None)
    assert [type(event) for event in events if isinstance(event, ConnectionLost)] == [ConnectionLost]
    assert unhandled == []


slow_resets = iter([5.0])


async def reset_slowly(con: asyncpg.Connection) -> None:
    await con.execute(f"select pg_sleep({next(slow_resets, 0.0)})")


async def test_new_connect_arguments_keep_the_timeout_and_a_drain_keeps_releases_fast(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=1, timeout=5.0) as pool:
        await pool.drain()
        pool.set_connect_args(postgres.dsn, ssl="disable")
        (pooled,) = pool._connections
        assert not pool._connections.is_expired(pooled)
        assert pool._connect_kwargs["timeout"] == 5.0


async def test_the_stack_of_a_leak_ends_with_the_line_that_leaks(make_pool: MakePool) -> None:
    leaks: list[LeakSuspected] = []
    listeners = [lambda event: leaks.append(event) if isinstance(event, LeakSuspected) else None]
    async with make_pool(max_size=2, leak_detection_threshold=0.02, listeners=listeners) as pool:
        con = await pool.acquire()  # leaks by await
        async with pool.acquire():  # leaks by with
            await eventually(lambda: len(leaks) == 2)
        await pool.release(con)
    assert [leak.stack.splitlines()[-1].split("#")[-1].strip() for leak in leaks] == ["leaks by await", "leaks by with"]


@pytest.mark.parametrize("raises", ["open_spare", "wait_until", "emit", "swap", "decide"])
async def test_the_replacement_survives_whatever_is_raised_in_it(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raises: str
) -> None:
    monkeypatch.setattr("aiopqr._pool.replacement.BACKOFF_FIRST", 0.02)
    failures = iter(range(2))
    async with make_pool(min_size=1, max_lifetime=0.3) as pool:
        where = {
            "open_spare": pool._connections,
            "wait_until": "aiopqr._pool.replacement.wait_until",
            "decide": "aiopqr._pool.replacement.decide",
            "emit": pool.events,
            "swap": pool._replacement,
        }[raises]
        if isinstance(where, str):
            module = __import__("aiopqr._pool.replacement", fromlist=[raises])
            where = module
        works = getattr(where, raises)

        def fails(*args: Any, **kwargs: Any) -> Any:
            if next(failures, None) is not None:
                raise RuntimeError("unforeseen")
            return works(*args, **kwargs)

        monkeypatch.setattr(where, raises, fails)
        pool._replacement.wake()
        await eventually(lambda: pool.stats().replacements.done >= 2)
        assert next(failures, None) is None
        assert raises == "open_spare" or "trying again" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_forked_child_leaves_its_parents_connections_alone(make_pool: MakePool) -> None:
    async with make_pool(min_size=2, max_size=2) as pool:
        with warnings.catch_warnings(action="ignore"):  # about forking a process that has threads
            child = os.fork()
        if child == 0:
            try:
                del pool
                gc.collect()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        async with asyncio.timeout(5):
            for _ in range(4):
                assert await pool.fetchval("select 1") == 1
