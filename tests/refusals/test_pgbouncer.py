"""What a real PgBouncer reports itself, and a pool behind it while the passwords change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest
from support.pgbouncer import PgBouncer

import aiopqr
from aiopqr.credentials import Credential
from aiopqr.refusals import Verdict, classify
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, error_of_login, eventually, hold

Start = Callable[..., PgBouncer]


@pytest.fixture
def bouncer(postgres: RotatingPostgres) -> Iterator[Start]:
    """Start a PgBouncer in front of the test's server."""
    started: list[PgBouncer] = []

    def start(**options: Any) -> PgBouncer:
        started.append(PgBouncer(postgres.server, **options).start())
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def pool_behind(make_pool: MakePool, postgres: RotatingPostgres) -> Callable[..., Any]:
    def make(bouncer: PgBouncer, **options: Any) -> Any:
        return make_pool(dsn=bouncer.dsn_of(postgres.database), statement_cache_size=0, **options)

    return make


async def wrong_password(postgres: RotatingPostgres) -> None:
    await postgres.rotate("odd", store_delay=None)


async def dropped_role(postgres: RotatingPostgres) -> None:
    await postgres.server.drop_accounts(postgres.usernames[0])


@pytest.mark.parametrize("act", [wrong_password, dropped_role])
async def test_a_refusal_of_pgbouncers_own_falls_back_and_fetches(
    act: Any, bouncer: Start, pool_behind: Any, postgres: RotatingPostgres
) -> None:
    running = bouncer()
    await act(postgres)
    exc = await error_of_login(running.dsn_of(postgres.database), postgres.source.pair.odd)
    assert (exc.sqlstate, classify(exc)) == ("08P01", Verdict.CREDENTIAL)
    async with pool_behind(running, refresh_interval=0) as pool:
        assert await hold(pool, 6) == [postgres.usernames[1]] * 6
        assert pool.stats().accounts["odd"].refused == pool.stats().fallbacks == 1
        await postgres.source.wait_fetched(2)
    assert postgres.failed_logins() == 0


async def test_an_account_that_pgbouncer_does_not_know_falls_back(
    bouncer: Start, pool_behind: Any, postgres: RotatingPostgres
) -> None:
    running = bouncer(userlist=(postgres.pair.even,))
    exc = await error_of_login(running.dsn_of(postgres.database), postgres.pair.odd)
    assert (exc.sqlstate, classify(exc)) == ("08P01", Verdict.CREDENTIAL)
    async with pool_behind(running) as pool:
        assert await hold(pool, 4) == [postgres.usernames[1]] * 4


async def test_a_login_that_fails_behind_pgbouncer_is_a_refusal_also_when_it_is_told_from_its_memory(
    bouncer: Start, pool_behind: Any, postgres: RotatingPostgres
) -> None:
    """Its list has the old password and lets it in; the server does not, and is asked once a ``server_login_retry``."""
    running = bouncer(userlist=tuple(postgres.pair.credentials()), server_login_retry=1)
    await postgres.rotate("odd", store_delay=None)
    dsn, stale = running.dsn_of(postgres.database), postgres.source.pair.odd
    at_once = await asyncio.gather(*(error_of_login(dsn, stale) for _ in range(3)))
    later = await error_of_login(dsn, stale)
    assert {classify(exc) for exc in (*at_once, later)} == {Verdict.CREDENTIAL}
    assert postgres.failed_logins() < 4
    async with pool_behind(running) as pool:
        assert await hold(pool, 4) == [postgres.usernames[1]] * 4
        assert pool.stats().accounts["odd"].refused == 1


async def test_a_server_that_is_down_behind_pgbouncer_is_waited_for(
    bouncer: Start, pool_behind: Any, postgres: RotatingPostgres
) -> None:
    running = bouncer(server_login_retry=1, query_wait_timeout=2)
    async with pool_behind(running, refresh_interval=0) as pool:
        await postgres.server.halt("fast")
        try:
            waiting = asyncio.create_task(pool.fetchval("select 1"))
            await eventually(lambda: pool.stats().outages)
        finally:
            await postgres.server.resume()
        assert await waiting == 1
        assert pool.stats().fallbacks == 0
    assert postgres.source.fetches == 1


@pytest.mark.parametrize(
    ("settings", "text", "verdict"),
    [
        ({"max_client_conn": 1}, "no more connections allowed", Verdict.SERVER_FULL),
        ({"max_db_connections": 1, "query_wait_timeout": 1}, "query_wait_timeout", Verdict.OUTAGE),
    ],
)
async def test_a_full_pgbouncer_is_waited_for_and_blames_no_account(
    settings: dict[str, int], text: str, verdict: Verdict, bouncer: Start, pool_behind: Any, postgres: RotatingPostgres
) -> None:
    running = bouncer(**settings)
    dsn, one = running.dsn_of(postgres.database), postgres.pair.odd
    con = await asyncpg.connect(
        dsn, user=one.username, password=one.password.reveal, statement_cache_size=0, ssl="disable"
    )
    await con.execute("begin")
    exc = await error_of_login(dsn, postgres.pair.even)
    assert (exc.sqlstate, classify(exc)) == ("08P01", verdict)
    assert text in str(exc)
    async with pool_behind(running, refresh_interval=0) as pool:
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: pool.stats().outages)
        await con.close()
        assert await waiting == 1
        assert pool.stats().fallbacks == 0
    assert postgres.source.fetches == 1


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_passwords_change_behind_pgbouncer_under_load_and_nothing_fails(
    pool_mode: str, bouncer: Start, pool_behind: Any, postgres: RotatingPostgres
) -> None:
    running = bouncer(pool_mode=pool_mode)
    rotations = 4
    errors: list[BaseException] = []
    served = 0
    stop = asyncio.Event()

    async def work(pool: aiopqr.AlternatingPool) -> None:
        nonlocal served
        while not stop.is_set():
            try:
                async with pool.acquire() as con, con.transaction():
                    assert await con.fetchval("select $1::int", 7) == 7
                served += 1
            except Exception as exc:
                errors.append(exc)
            await asyncio.sleep(0.001)

    async with pool_behind(running, refresh_interval=0.3, min_size=4, max_size=4, max_lifetime=0.5) as pool:
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(work(pool))
            for number in range(rotations):
                await postgres.rotate("odd" if number % 2 else "even", store_delay=0.1)
                pair = postgres.pair
                await eventually(lambda pair=pair: pool.pair == pair)
                done = pool.stats().replacements.done
                await eventually(lambda done=done: pool.stats().replacements.done >= done + 4)
            stop.set()
        refused = sum(account.refused for account in pool.stats().accounts.values())
    assert errors == []
    assert served > 100
    assert refused <= 2 * rotations


async def test_a_pool_that_begins_with_a_stale_pair_behind_pgbouncer_waits_for_the_store(
    bouncer: Start, pool_behind: Any, postgres: RotatingPostgres
) -> None:
    running = bouncer()
    await postgres.rotate_both(store_delay=0.3)
    async with pool_behind(running) as pool:
        assert await pool.fetchval("select 1") == 1
        assert pool.pair == postgres.pair
        assert isinstance(pool.pair.odd, Credential)
