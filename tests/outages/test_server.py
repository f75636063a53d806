"""The server goes away and comes back, or the path to it does: an acquire waits, and only queries in flight fail."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from support.load import Load
from support.proxy import Proxy

import aiopqr
from aiopqr.testing import ContainerPostgres, RotatingPostgres

from .conftest import MakePool, eventually, failures_in_a_row


@pytest.fixture
async def logged(postgres: RotatingPostgres) -> AsyncIterator[RotatingPostgres]:
    """The server logs every login."""
    await postgres.server.configure(log_connections=True)
    yield postgres
    await postgres.server.configure(log_connections=None)


def logins_at_once(log: str, admin: str) -> tuple[int, int]:
    """How many logins except the admin's are in the log, and how many were in progress together at most."""
    of_the_admin = set(re.findall(rf"\[(\d+)\].*?connection authorized: user={admin}\b", log))
    under_way: set[str] = set()
    count = most = 0
    for pid, what in re.findall(r"\[(\d+)\].*?(connection received|connection authorized|FATAL)", log):
        if pid in of_the_admin:
            continue
        if what == "connection received":
            count += 1
            under_way.add(pid)
            most = max(most, len(under_way))
        else:
            under_way.discard(pid)
    return count, most


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_under_load_fails_only_queries_in_flight_and_is_met_by_no_herd(
    mode: str, make_pool: MakePool, logged: RotatingPostgres
) -> None:
    server = logged.server
    async with make_pool(min_size=10, max_size=10) as pool:
        async with Load(pool).running(30) as load:
            await load.serves()
            async with load.cuts.cutting():
                await server.halt(mode)
            await eventually(lambda: failures_in_a_row(pool) > 3)
            mark = server.mark()
            await server.resume()
            await load.serves()
            await eventually(lambda: pool.stats().size == 10)
        stats = pool.stats()
    assert load.unexpected == []
    assert len(load.failures) <= 10
    assert stats.accounts["odd"].refused == stats.accounts["even"].refused == stats.timeouts == 0
    assert logged.source.fetches == 1
    count, most = logins_at_once(server.log_text(mark), server.admin)
    assert count >= 10
    assert most <= 2


@pytest.mark.parametrize("session_reset", ["full", "deferred"])
async def test_no_connection_is_handed_out_after_the_server_s_goodbye(
    session_reset: str, make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    errors: list[Exception] = []
    served = 0

    async def work(pool: aiopqr.AlternatingPool) -> None:
        nonlocal served
        while True:
            try:
                async with pool.acquire() as con:
                    await con.execute("select 1")  # one step: a second might find the goodbye of its own query
                served += 1
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as exc:
                errors.append(exc)
            await asyncio.sleep(0.001)

    async with make_pool(min_size=6, max_size=10, session_reset=session_reset) as pool:
        workers = [asyncio.create_task(work(pool), name=f"worker-{number}") for number in range(8)]
        for _ in range(3):
            since = served
            await eventually(lambda: served > since + 20)  # noqa: B023
            await postgres.server.restart("fast")
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    # "cannot switch to state 12" is asyncpg's error for a query on such a connection.
    assert [error for error in errors if isinstance(error, asyncpg.InternalClientError)] == []
    assert all(worker.cancelled() for worker in workers)


async def test_an_idle_pool_is_back_at_its_floor_after_a_restart_one_login_at_a_time(
    make_pool: MakePool, logged: RotatingPostgres
) -> None:
    if isinstance(logged.server, ContainerPostgres):  # a silent login is overtaken
        pytest.skip("Docker's proxy accepts connections for a server that is down")
    async with make_pool(min_size=8, max_size=8) as pool:
        mark = logged.server.mark()
        await logged.server.restart("immediate")
        await eventually(lambda: pool.stats().size == 8)
        assert await pool.fetchval("select 1") == 1
    count, most = logins_at_once(logged.server.log_text(mark), logged.server.admin)
    assert count >= 8
    assert most == 1


async def test_terminate_storms_under_load_fail_only_queries_in_flight_and_lose_no_permit(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=4, max_size=4, max_lifetime=0.2) as pool:
        async with Load(pool).running(12) as load:
            for _ in range(10):
                async with load.cuts.cutting():
                    await postgres.terminate()
                await load.serves()
        held = [await pool.acquire(timeout=5) for _ in range(4)]
        with pytest.raises(aiopqr.AcquireTimeout):
            await pool.acquire(timeout=0.05)
        for con in held:
            await pool.release(con)
        await eventually(lambda: pool.stats().in_use == 0)  # a due connection is closed in the background
    assert load.unexpected == []


async def test_an_acquire_says_what_it_waited_for_when_a_server_stays_down(make_pool: MakePool, proxy: Proxy) -> None:
    async with make_pool(proxy, name="orders") as pool:
        await proxy.refuse()
        with pytest.raises(aiopqr.AcquireTimeout, match=r"orders: no connection within 0\.\d s.*Refused") as caught:
            await pool.acquire(timeout=0.4)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        await proxy.accept()
        assert await pool.fetchval("select 1") == 1


async def test_a_login_swallowed_by_the_network_is_waited_out(
    make_pool: MakePool, proxy: Proxy, postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.1)
    async with make_pool(proxy) as pool:
        proxy.blackhole()
        with pytest.raises(aiopqr.AcquireTimeout, match="TimeoutError") as caught:
            await pool.acquire(timeout=0.5)
        assert isinstance(caught.value.__cause__, TimeoutError)
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        seen = proxy.accepted
        await proxy.wait_accepted(seen + 1)
        proxy.heal()
        assert await waiting == 1
        assert pool.stats().fallbacks == 0
    assert postgres.source.fetches == 1


async def test_a_query_and_a_release_into_a_black_hole_end_and_the_pool_heals(
    make_pool: MakePool, proxy: Proxy
) -> None:
    async with make_pool(proxy, max_size=1, reset_timeout=0.2) as pool:
        con = await pool.acquire()
        await con.execute("set application_name = 'x'")
        proxy.blackhole()
        with pytest.raises(TimeoutError):
            await con.fetchval("select 1", timeout=0.2)
        begun = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await pool.release(con)
        assert time.monotonic() - begun < 2
        proxy.heal()
        assert await pool.fetchval("select 1") == 1
        assert pool.stats().in_use == 0


class ForgetfulProxy(Proxy):
    """A firewall that may forget its connections: open ones are then dead, nobody is notified, and new ones work."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.generation = 0

    async def _pump(self, reader: Any, writer: Any, budget: int | None) -> None:
        born = self.generation
        while data := await reader.read(65536):
            if born != self.generation:
                break
            writer.write(data)
            await writer.drain()
        if born != self.generation:
            await asyncio.Event().wait()
        writer.close()


async def test_a_pool_of_silently_dead_connections_serves_within_the_time_of_a_few_checks(
    make_pool: MakePool, postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._pool.checks.CHECK_TIMEOUT", 1.0)
    async with ForgetfulProxy(postgres.server.host, postgres.server.port) as proxy:
        pool = await make_pool(proxy, min_size=10, max_size=10, check_after=1e-9)
        proxy.generation += 1
        begun = time.monotonic()
        assert await pool.fetchval("select 1") == 1
        assert time.monotonic() - begun < 3
        monkeypatch.setattr("aiopqr._pool.connections.CLOSE_TIMEOUT", 0.5)
        async with asyncio.timeout(5):  # nobody has notified those that are dead
            await pool.close()


@pytest.mark.parametrize("at", [0, 1, 20, 100, 400])
async def test_resets_in_mid_handshake_are_waited_out_and_blame_nobody(
    at: int, make_pool: MakePool, proxy: Proxy, postgres: RotatingPostgres
) -> None:
    async with make_pool(proxy) as pool:
        proxy.reset_after = at
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: failures_in_a_row(pool) >= 3)
        proxy.heal()
        assert await waiting == 1
        stats = pool.stats()
    assert stats.accounts["odd"].refused == stats.accounts["even"].refused == stats.fallbacks == 0
    assert postgres.source.fetches == 1


async def test_a_slow_server_is_not_down(make_pool: MakePool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.1)
    proxy.delay = 0.2  # for each of a login's steps
    async with make_pool(proxy, min_size=4, max_size=4) as pool:
        assert await pool.fetchval("select 1") == 1
        stats = pool.stats()
    assert (stats.outages, stats.failed) == (0, 0)


async def test_clock_jumps_do_not_matter(
    make_pool: MakePool, postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = time.time, 0

    def jumping() -> float:
        nonlocal jumps
        jumps += 1
        return real() + (-1) ** jumps * 86400.0 * jumps

    monkeypatch.setattr("time.time", jumping)
    postgres.source.interval = 0.05
    async with make_pool(min_size=4, max_lifetime=0.3) as pool, Load(pool).running(8) as load:
        for parity in ("odd", "even"):
            await postgres.rotate(parity)
            pair = postgres.pair
            await eventually(lambda pair=pair: pool.pair == pair)
            done = pool.stats().replacements.done
            await eventually(lambda done=done: pool.stats().replacements.done > done + 4)
    assert load.failures == []
    assert pool.stats().refresh.failed == 0


async def test_connects_with_less_time_than_the_back_off_still_find_the_server_back(
    make_pool: MakePool, proxy: Proxy
) -> None:
    """Each error has the latest failure, even if the connect had no time to try; the outage is reported once."""
    events: list[str] = []
    async with make_pool(proxy, listeners=[lambda event: events.append(type(event).__name__)], timeout=0.1) as pool:
        await proxy.refuse()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() < begun + 2:  # by then, the back-off is at its longest
            with pytest.raises(aiopqr.ConnectTimeout, match=r"Refused|TimeoutError") as caught:
                await pool.acquire()
            assert isinstance(caught.value.__cause__, OSError)
        await proxy.accept()
        async with asyncio.timeout(3):
            while pool.stats().size == 0:
                with contextlib.suppress(aiopqr.ConnectTimeout):
                    assert await pool.fetchval("select 1") == 1
    assert events == ["ServerUnavailable", "ServerRecovered"]
