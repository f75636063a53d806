"""What a pool does about refusals that come and go, come late, or come from both accounts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import asyncpg
import pytest

from aiopqr.rotation.sql import identifier
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, Recorder, eventually, hold, refused_logins


async def alter_odd(postgres: RotatingPostgres, what: str) -> None:
    await postgres.server.execute(f"ALTER ROLE {identifier(postgres.usernames[0])} {what}")


async def test_a_refused_credential_is_fetched_anew_and_serves_again(
    postgres: RotatingPostgres, make_pool: MakePool
) -> None:
    odd, even = postgres.usernames
    async with make_pool(refresh_interval=0) as pool:
        await postgres.rotate("odd")
        assert await pool.fetchval("select session_user") == even
        await postgres.source.wait_fetched(2)
        await eventually(lambda: pool.pair == postgres.pair)
        await pool.expire_connections()
        assert set(await hold(pool, 2)) == {odd, even}
    assert postgres.failed_logins() == 1


async def test_a_full_account_falls_back_without_a_fetch_and_returns_after_a_pause(
    postgres: RotatingPostgres, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._connect.account_choice.FULL_PAUSE", 0.2)
    odd, even = postgres.usernames
    await alter_odd(postgres, "CONNECTION LIMIT 0")
    async with make_pool(refresh_interval=0) as pool:
        assert await hold(pool, 4) == [even] * 4
        assert pool.stats().accounts["odd"].refused_for is None
        await alter_odd(postgres, "CONNECTION LIMIT -1")
        await pool.expire_connections()
        await asyncio.sleep(0.2)  # the pause
        assert set(await hold(pool, 4)) == {odd, even}
    assert postgres.source.fetches == 1


async def test_two_full_accounts_are_waited_for_without_a_fetch(
    postgres: RotatingPostgres, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._connect.account_choice.FULL_PAUSE", 0.1)
    roles = [identifier(name) for name in postgres.usernames]
    for role in roles:
        await postgres.server.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    async with make_pool(refresh_interval=0) as pool:
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: pool.stats().accounts["even"].refused)
        await postgres.server.execute(f"ALTER ROLE {roles[0]} CONNECTION LIMIT -1")
        assert await waiting == 1
    assert postgres.source.fetches == 1


async def test_an_account_that_may_log_in_again_is_found_by_a_probe(
    postgres: RotatingPostgres, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._refresh.quarantine.PROBE_FIRST", 0.1)
    await alter_odd(postgres, "NOLOGIN")
    heard = Recorder()
    async with make_pool(listeners=[heard]) as pool:
        await hold(pool, 2)
        await alter_odd(postgres, "LOGIN")
        while "AccountRecovered" not in heard.names:
            await pool.expire_connections()
            await hold(pool, 1)
        assert pool.stats().accounts["odd"].refused_for is None


async def test_a_full_account_whose_password_was_refused_before_is_not_probed_by_every_connect(
    postgres: RotatingPostgres, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._refresh.quarantine.PROBE_FIRST", 0.05)
    monkeypatch.setattr("aiopqr._connect.account_choice.FULL_PAUSE", 3600.0)
    odd = postgres.source.pair.odd
    await postgres.rotate("odd", store_delay=None)
    async with make_pool() as pool:
        await hold(pool, 1)
        await alter_odd(postgres, "CONNECTION LIMIT 0")
        await postgres.server.set_password(odd.username, odd.password)
        mark = postgres.server.mark()
        for _ in range(20):
            await pool.expire_connections()
            await hold(pool, 1)
            await asyncio.sleep(0.01)
        await eventually(lambda: pool.stats().probes)
        probes = pool.stats().probes
    assert refused_logins(postgres.server, odd.username, mark) <= 1
    assert probes <= 1


async def test_sessions_ended_by_the_administrator_are_no_refusal(
    postgres: RotatingPostgres, make_pool: MakePool
) -> None:
    async with make_pool(min_size=2, check_after=1e-9) as pool:
        for _ in range(5):
            await postgres.terminate()
            assert await pool.fetchval("select 1") == 1
        stats = pool.stats()
    assert stats.accounts["odd"].refused == stats.accounts["even"].refused == 0


# Late and duplicate refusals.


async def test_a_late_refusal_of_an_old_password_says_nothing_of_the_new_one(
    postgres: RotatingPostgres, make_pool: MakePool
) -> None:
    """The refusal of a login that began with the old password arrives after the new one was fetched."""
    held, go_on = asyncio.Event(), asyncio.Event()
    old = postgres.pair.odd.password

    async def slow(*args: object, password: Callable[[], str], **kwargs: object) -> asyncpg.Connection:
        known = password()
        if known == old.reveal():
            held.set()
            await go_on.wait()
        return await asyncpg.connect(*args, password=known, **kwargs)

    async with make_pool(connect=slow) as pool:
        first = asyncio.create_task(pool.acquire().__aenter__())
        await held.wait()
        await postgres.rotate("odd")
        await pool.refresh()
        go_on.set()
        one = await first
        assert pool.stats().accounts["odd"].refused == 1
        assert pool.stats().accounts["odd"].refused_for is None
        users = [await one.fetchval("select session_user"), *(await hold(pool, 3))]
        await pool.release(one)
    assert users.count(postgres.usernames[0]) == 2
    assert postgres.failed_logins() == 1


async def test_a_pair_that_flips_back_lifts_nothing(postgres: RotatingPostgres, make_pool: MakePool) -> None:
    stale = postgres.pair
    async with make_pool() as pool:
        await postgres.rotate("odd")
        await hold(pool, 2)
        await pool.refresh()
        postgres.source.pair = stale
        await pool.refresh()
        await pool.expire_connections()
        assert await hold(pool, 4) == [postgres.usernames[1]] * 4
        postgres.source.pair = postgres.pair
        await pool.refresh()
        await pool.expire_connections()
        assert set(await hold(pool, 4)) == set(postgres.usernames)
    assert postgres.failed_logins() == 1


async def test_a_missing_account_is_a_refused_one_that_nobody_knocks_for(
    postgres: RotatingPostgres, make_pool: MakePool
) -> None:
    postgres.source.pair = replace(postgres.pair, odd=None, active="even")
    async with make_pool() as pool:
        assert await hold(pool, 3) == [postgres.usernames[1]] * 3
        assert pool.stats().degraded
    assert postgres.failed_logins() == 0
