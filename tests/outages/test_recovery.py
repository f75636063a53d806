"""When the server comes back: nobody storms it, and nobody who waits is forgotten."""

from __future__ import annotations

import asyncio

import pytest
from support.proxy import Proxy

import aiopqr
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually, failures_in_a_row


async def test_a_password_changed_in_an_outage_costs_one_failed_login_however_many_wait(
    make_pool: MakePool, postgres: RotatingPostgres, proxy: Proxy
) -> None:
    async with make_pool(proxy, max_size=20) as pool:
        await proxy.refuse()
        waiting = [asyncio.create_task(pool.acquire().__aenter__()) for _ in range(20)]
        await eventually(lambda: failures_in_a_row(pool) >= 2)
        await postgres.rotate("odd", store_delay=None)
        await proxy.accept()
        connections = await asyncio.gather(*waiting)
        users = {await con.fetchval("select session_user") for con in connections}
        for con in connections:
            await pool.release(con)
    assert users == {postgres.pair.even.username}
    assert postgres.failed_logins() == 1


async def test_a_newer_password_fetched_in_an_outage_is_no_fallback(
    make_pool: MakePool, postgres: RotatingPostgres, proxy: Proxy
) -> None:
    events: list[str] = []
    async with make_pool(proxy, listeners=[lambda event: events.append(type(event).__name__)]) as pool:
        await proxy.refuse()
        waiting = asyncio.create_task(pool.fetchval("select session_user"))
        await eventually(lambda: pool.stats().outages)
        await postgres.rotate("odd")
        await pool.refresh()
        await proxy.accept()
        await waiting
    assert "FellBack" not in events
    assert pool.stats().fallbacks == 0
    assert postgres.failed_logins() == 0


async def test_a_refusal_ends_the_outage_for_those_who_come_next(
    make_pool: MakePool, postgres: RotatingPostgres, proxy: Proxy
) -> None:
    events: list[str] = []
    async with make_pool(proxy, listeners=[lambda event: events.append(type(event).__name__)]) as pool:
        await proxy.refuse()
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: pool.stats().outages)
        await postgres.rotate_both(store_delay=None)
        await proxy.accept()
        await eventually(lambda: pool.stats().all_refused)
        assert events.index("ServerRecovered") < events.index("AllRefused")
        postgres.source.pair = postgres.pair
        assert await waiting == 1


async def test_a_fatal_error_after_an_outage_is_raised_without_waiting(
    make_pool: MakePool, postgres: RotatingPostgres, proxy: Proxy
) -> None:
    async with make_pool(proxy, database="nowhere") as pool:
        await proxy.refuse()
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: failures_in_a_row(pool) >= 6)  # by now, the back-off is a second
        await proxy.accept()
        with pytest.raises(Exception, match="nowhere"):
            await waiting
        async with asyncio.timeout(0.4):
            with pytest.raises(Exception, match="nowhere"):
                await pool.fetchval("select 1")


async def test_a_probe_that_succeeds_wakes_all_who_wait_for_credentials(
    make_pool: MakePool, postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both passwords are refused; then an operator puts the old ones back, and the store has nothing new."""
    monkeypatch.setattr("aiopqr._refresh.quarantine.PROBE_FIRST", 3.0)
    before = postgres.pair
    async with make_pool(max_size=10) as pool:
        await postgres.rotate_both(store_delay=None)
        waiting = [asyncio.create_task(pool.acquire().__aenter__()) for _ in range(10)]
        await eventually(lambda: pool.stats().all_refused)
        await postgres.server.set_passwords(*before.credentials())
        await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
        async with asyncio.timeout(1.5):  # the next probe would be due in three
            connections = await asyncio.gather(*waiting)
        for con in connections:
            await pool.release(con)


async def test_a_probe_given_up_passes_to_another_who_waits(
    postgres: RotatingPostgres, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._refresh.quarantine.PROBE_FIRST", 3.0)
    before = postgres.pair
    async with aiopqr.Connector(proxy.dsn_of(postgres.dsn), credentials=postgres.source, ssl="disable") as connector:
        await postgres.rotate_both(store_delay=None)
        first, second = (asyncio.create_task(connector.connect()) for _ in range(2))
        await eventually(lambda: connector.stats().all_refused)
        await postgres.server.set_passwords(*before.credentials())
        proxy.blackhole()  # otherwise the first probe may succeed before the second begins
        seen = proxy.accepted
        await proxy.wait_accepted(seen + 2)  # each probes another account
        third = asyncio.create_task(connector.connect())
        for _ in range(5):
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.wait({first, second})
        proxy.heal()
        async with asyncio.timeout(1.5):  # the next probe would be due in three
            (await third).terminate()


async def test_idle_connections_that_a_proxy_cuts_are_counted_as_lost_and_reported(
    make_pool: MakePool, proxy: Proxy
) -> None:
    events: list[aiopqr.Event] = []
    async with make_pool(proxy, min_size=3, max_size=3, listeners=[events.append]) as pool:
        assert await proxy.cut() == 3
        await eventually(lambda: pool.stats().lost == 3)
        assert [event.when for event in events if isinstance(event, aiopqr.events.ConnectionLost)] == ["idle"] * 3


async def test_an_idle_connection_that_a_proxy_cuts_has_the_others_checked(make_pool: MakePool, proxy: Proxy) -> None:
    async with make_pool(proxy, min_size=3, max_size=3, check_after=60.0) as pool:
        next(iter(proxy._links)).cancel()
        await eventually(lambda: pool.stats().lost == 1)
        trusted = [pooled for pooled in pool._connections if pooled.trusted_until > 0 and not pooled.con.is_closed()]
        assert len(trusted) <= 1  # the connection that was opened since, if any
