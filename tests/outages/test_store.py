"""The store is down, slow, throttling, or lies. The last good pair stays in use, and no connect waits for the store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.load import Load

import aiopqr
from aiopqr.testing import HANG, RotatingPostgres

from .conftest import MakePool, eventually


async def test_a_store_that_is_down_at_the_start_is_told_at_once(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    postgres.source.error = aiopqr.SourceError("the store is down")
    with pytest.raises(aiopqr.SourceError, match="the store is down"):
        await make_pool()


async def test_a_slow_store_delays_nobody_while_one_account_is_refused(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    postgres.source.interval = 0
    async with make_pool(min_size=4, max_lifetime=0.2) as pool, Load(pool).running(8) as load:
        postgres.source.gate = asyncio.Event()
        await postgres.rotate("odd", store_delay=None)
        await postgres.source.wait_begun(2)
        done = pool.stats().replacements.done
        await eventually(lambda: pool.stats().replacements.done > done + 8)
        postgres.source.pair = postgres.pair
        postgres.source.gate.set()
        await eventually(lambda: pool.pair == postgres.pair)
    assert load.failures == []
    assert load.slowest_acquire < 0.5
    assert postgres.failed_logins() == 1


async def test_a_store_that_throttles_is_asked_ever_less_often_however_much_is_refused(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    postgres.source.interval = 0
    async with make_pool(max_size=20) as pool:
        await postgres.rotate_both(store_delay=None)
        postgres.source.error = aiopqr.SourceError("429")
        waiting = [asyncio.create_task(pool.acquire().__aenter__()) for _ in range(20)]
        await eventually(lambda: pool.stats().all_refused)
        await asyncio.sleep(2.0)
        assert postgres.source.fetches <= 1 + 6
        postgres.source.error = None
        postgres.source.pair = postgres.pair
        for con in await asyncio.gather(*waiting):
            await pool.release(con)
    assert postgres.failed_logins() <= 2 * 20


async def test_a_store_that_hangs_is_given_up_and_asked_again(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool(fetch_timeout=0.1, refresh_interval=0) as pool:
        postgres.source.then(HANG, HANG)
        await postgres.rotate_both()
        assert await pool.fetchval("select 1") == 1
        assert pool.stats().refresh.failed == 2


@pytest.mark.parametrize(
    "lie",
    [
        lambda pair, old: old,
        lambda pair, old: replace(pair, odd=pair.even, even=pair.odd),
        lambda pair, old: replace(pair, odd=None, active="even"),
        lambda pair, old: replace(pair, even=None, active="odd"),
        lambda pair, old: "not a pair",
        lambda pair, old: None,
        lambda pair, old: ValueError("garbage"),
    ],
    ids=["old pair", "swapped", "odd missing", "even missing", "text", "nothing", "garbage"],
)
async def test_a_store_that_lies_between_two_truths_costs_no_error(
    lie: object, make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    old = postgres.pair
    await postgres.rotate("odd")
    async with make_pool(min_size=4, max_lifetime=0.2) as pool, Load(pool).running(8) as load:
        said = lie(postgres.pair, old)
        if isinstance(said, Exception):
            postgres.source.error = said
        else:
            postgres.source.pair = said
        try:
            await pool.refresh()
        except Exception:
            assert pool.pair == postgres.pair
        done = pool.stats().replacements.done
        await eventually(lambda: pool.stats().replacements.done > done + 6)
        postgres.source.error = None
        postgres.source.pair = postgres.pair
        await pool.refresh()
        assert pool.pair == postgres.pair
        done = pool.stats().replacements.done
        await eventually(lambda: pool.stats().replacements.done > done + 6)
    assert load.failures == []
    assert postgres.failed_logins() <= 1


async def test_a_pair_that_was_never_right_is_waited_for_and_told(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    postgres.source.pair = aiopqr.CredentialPair(aiopqr.Credential("who", "a"), aiopqr.Credential("else", "b"))
    async with make_pool(timeout=0.4) as pool:
        with pytest.raises(aiopqr.CredentialsRefused, match=r"who.*else"):
            await pool.acquire()
        postgres.source.pair = postgres.pair
        await pool.refresh()
        assert await pool.fetchval("select 1") == 1


async def test_pools_that_share_a_refresher_survive_when_only_one_of_them_is_refused(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    """An account that may not connect to one database serves another, and the refusal stays where it was met."""
    server, odd = postgres.server, postgres.usernames[0]
    await server.execute(f'REVOKE CONNECT ON DATABASE "{postgres.database}" FROM PUBLIC')
    await server.execute(f'REVOKE "{postgres.owner}" FROM "{odd}"')
    async with (
        aiopqr.Refresher(postgres.source) as shared,
        make_pool(credentials=shared, name="own") as own,
        make_pool(credentials=shared, dsn=server.dsn_of("postgres"), name="other") as other,
    ):
        for pool in (own, other):
            held = [await pool.acquire() for _ in range(4)]
            users = {await con.fetchval("select session_user") for con in held}
            for con in held:
                await pool.release(con)
            assert (odd in users) is (pool is other)
        assert own.stats().accounts["odd"].refused_for is not None
        assert other.stats().accounts["odd"].refused_for is None
