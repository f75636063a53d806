"""Each way in which Postgres refuses: what it means, and what a pool does about it. On 16, 18 and the system's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import pytest

import aiopqr
from aiopqr._connect import maker_of
from aiopqr.refusals import Verdict, classify
from aiopqr.rotation.sql import identifier
from aiopqr.testing import EmbeddedPostgres, PostgresServer, RotatingPostgres

from .conftest import MakePool, Recorder, error_of_login, eventually, hold, refused_logins


@pytest.fixture(scope="session", params=["embedded", "embedded18", "system"])
def aiopqr_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with EmbeddedPostgres(request.param, max_connections=12) as server:
        yield server


# The odd account is refused, the even one is not.


async def wrong_password(postgres: RotatingPostgres) -> None:
    await postgres.rotate("odd", store_delay=None)


async def dropped_role(postgres: RotatingPostgres) -> None:
    await postgres.server.drop_accounts(postgres.usernames[0])


async def expired(postgres: RotatingPostgres) -> None:
    await alter_odd(postgres, "VALID UNTIL '2001-01-01'")


async def no_password(postgres: RotatingPostgres) -> None:
    await alter_odd(postgres, "PASSWORD NULL")


async def nologin(postgres: RotatingPostgres) -> None:
    await alter_odd(postgres, "NOLOGIN")


async def dropped_role_under_trust(postgres: RotatingPostgres) -> None:
    await postgres.server.set_hba(["host all all all trust"])
    await dropped_role(postgres)


async def no_connect(postgres: RotatingPostgres) -> None:
    database, odd = identifier(postgres.database), identifier(postgres.usernames[0])
    await postgres.server.execute(f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
    await postgres.server.execute(f"REVOKE {identifier(postgres.owner)} FROM {odd}")


async def full_account(postgres: RotatingPostgres) -> None:
    await alter_odd(postgres, "CONNECTION LIMIT 0")


async def alter_odd(postgres: RotatingPostgres, what: str) -> None:
    await postgres.server.execute(f"ALTER ROLE {identifier(postgres.usernames[0])} {what}")


@dataclass(frozen=True)
class Refusal:
    act: Callable[[RotatingPostgres], Awaitable[None]]
    sqlstate: str
    verdict: Verdict


BLAMED = [
    Refusal(wrong_password, "28P01", Verdict.CREDENTIAL),
    Refusal(dropped_role, "28P01", Verdict.CREDENTIAL),
    Refusal(expired, "28P01", Verdict.CREDENTIAL),
    Refusal(no_password, "28P01", Verdict.CREDENTIAL),
    Refusal(nologin, "28000", Verdict.ACCOUNT),
    Refusal(dropped_role_under_trust, "28000", Verdict.ACCOUNT),
    Refusal(no_connect, "42501", Verdict.ACCOUNT),
    Refusal(full_account, "53300", Verdict.ACCOUNT_FULL),
]
blamed = pytest.mark.parametrize("refusal", BLAMED, ids=lambda refusal: refusal.act.__name__)


@pytest.fixture
async def refused(refusal: Refusal, postgres: RotatingPostgres) -> AsyncIterator[RotatingPostgres]:
    await refusal.act(postgres)
    yield postgres
    await postgres.server.set_hba(None)


@blamed
async def test_a_refused_account_is_known_costs_one_login_and_the_other_serves(
    refusal: Refusal, refused: RotatingPostgres, make_pool: MakePool
) -> None:
    odd, even = refused.usernames
    exc = await error_of_login(refused.dsn, refused.source.pair.odd)
    assert (exc.sqlstate, classify(exc)) == (refusal.sqlstate, refusal.verdict)
    heard = Recorder()
    mark = refused.server.mark()
    async with make_pool(listeners=[heard]) as pool:
        assert await hold(pool, 6) == [even] * 6
        stats = pool.stats()
    assert refused_logins(refused.server, odd, mark) == 1
    assert (stats.accounts["odd"].refused, stats.accounts["even"].refused, stats.fallbacks) == (1, 0, 1)
    assert "FellBack" in heard.names
    (quarantined,) = [event for event in heard.events if isinstance(event, aiopqr.events.LoginRefused)]
    assert (quarantined.verdict, quarantined.username, quarantined.sqlstate) == (
        refusal.verdict.value,
        odd,
        refusal.sqlstate,
    )
    assert isinstance(quarantined, aiopqr.events.AccountQuarantined) is (refusal.verdict is not Verdict.ACCOUNT_FULL)


# A mistake that waiting does not cure: the driver's error is raised immediately.


async def rejected_by_hba(postgres: RotatingPostgres) -> dict[str, object]:
    await postgres.server.set_hba(["host all all all reject"])
    return {}


async def without_an_hba_entry(postgres: RotatingPostgres) -> dict[str, object]:
    await postgres.server.set_hba([])
    return {}


async def no_such_database(postgres: RotatingPostgres) -> dict[str, object]:
    return {"database": "nowhere"}


async def bad_parameter(postgres: RotatingPostgres) -> dict[str, object]:
    return {"server_settings": {"no_such_setting": "1"}}


async def bad_value(postgres: RotatingPostgres) -> dict[str, object]:
    return {"server_settings": {"work_mem": "much"}}


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (rejected_by_hba, asyncpg.InvalidAuthorizationSpecificationError),
        (without_an_hba_entry, asyncpg.InvalidAuthorizationSpecificationError),
        (no_such_database, asyncpg.InvalidCatalogNameError),
        (bad_parameter, asyncpg.UndefinedObjectError),
        (bad_value, asyncpg.InvalidParameterValueError),
    ],
)
async def test_a_mistake_is_raised_at_once_as_it_is(
    act: Callable[[RotatingPostgres], Awaitable[dict[str, object]]],
    error: type[asyncpg.PostgresError],
    postgres: RotatingPostgres,
    make_pool: MakePool,
) -> None:
    options = await act(postgres)
    heard = Recorder()
    try:
        mark = postgres.server.mark()
        async with make_pool(listeners=[heard], **options) as pool:
            async with asyncio.timeout(5):
                with pytest.raises(error) as caught:
                    await pool.acquire()
            assert type(caught.value) is error
            assert classify(caught.value) is Verdict.FATAL
            assert pool.stats().failed == 1
    finally:
        await postgres.server.set_hba(None)
    assert sum(refused_logins(postgres.server, name, mark) for name in postgres.usernames) == 1
    assert heard.events == []
    assert postgres.source.fetches == 1


# No slot, whatever the account: connects wait, and no account is to blame.


@asynccontextmanager
async def full_database(postgres: RotatingPostgres) -> AsyncIterator[None]:
    name = identifier(postgres.database)
    await postgres.server.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    yield
    await postgres.server.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")


@asynccontextmanager
async def slots_reserved(postgres: RotatingPostgres) -> AsyncIterator[None]:
    """Only the superuser's slots are left. Others may give up theirs at this moment, so take what there is."""
    held = []
    try:
        while True:
            held.append(await postgres.connect("even"))
    except asyncpg.TooManyConnectionsError:
        pass
    yield
    for con in held:
        await con.close()


@asynccontextmanager
async def no_slots(postgres: RotatingPostgres) -> AsyncIterator[None]:
    held = []
    try:
        while True:
            held.append(await postgres.server.admin_connect())
    except asyncpg.TooManyConnectionsError:
        pass
    yield
    for con in held:
        await con.close()


@pytest.mark.parametrize("fill", [full_database, slots_reserved, no_slots])
async def test_a_full_server_is_waited_for_and_blames_no_account(
    fill: Callable[[RotatingPostgres], object], postgres: RotatingPostgres, make_pool: MakePool
) -> None:
    async with make_pool(refresh_interval=0) as pool:
        async with fill(postgres):
            exc = await error_of_login(postgres.dsn, postgres.pair.odd)
            assert (exc.sqlstate, classify(exc)) == ("53300", Verdict.SERVER_FULL)
            with pytest.raises(aiopqr.AcquireTimeout, match="TooManyConnectionsError") as caught:
                await pool.acquire(timeout=0.3)
            assert isinstance(caught.value.__cause__, asyncpg.TooManyConnectionsError)
            waiting = asyncio.create_task(pool.fetchval("select session_user"))
            outage = maker_of(pool.connector)._state.outage
            before = outage.failures
            await eventually(lambda: outage.failures > before)
        assert await waiting in postgres.usernames
        stats = pool.stats()
    assert stats.fallbacks == stats.accounts["odd"].refused == stats.accounts["even"].refused == 0
    assert postgres.source.fetches == 1


# Starting up, shutting down.


async def test_a_server_that_is_starting_up_is_waited_for(postgres: RotatingPostgres, make_pool: MakePool) -> None:
    server = postgres.server
    assert isinstance(server, EmbeddedPostgres)
    # A slow recovery from an archive, during which no logins are accepted.
    await server.halt("immediate")
    server._settings |= {"restore_command": "sleep 0.4; false", "hot_standby": False}
    (server.data / "recovery.signal").touch()
    server.run_as.own(server.data / "recovery.signal")
    heard = Recorder()
    starting = asyncio.create_task(server.resume())
    try:
        async with make_pool(listeners=[heard], refresh_interval=0) as pool:
            waiting = asyncio.create_task(pool.fetchval("select 1"))
            exc: BaseException = ConnectionRefusedError()
            while isinstance(exc, ConnectionRefusedError):
                exc = await error_of_login(postgres.dsn, postgres.pair.even)
            assert (exc.sqlstate, classify(exc)) == ("57P03", Verdict.OUTAGE)
            assert "starting up" in str(exc)
            assert await waiting == 1
            stats = pool.stats()
    finally:
        await starting
        server._settings = {k: v for k, v in server._settings.items() if k not in ("restore_command", "hot_standby")}
        await server.restart()
    assert heard.names == ["ServerUnavailable", "ServerRecovered"]
    assert stats.accounts["odd"].refused == stats.accounts["even"].refused == 0
    assert postgres.source.fetches == 1


async def test_a_server_that_is_shutting_down_is_waited_for(postgres: RotatingPostgres, make_pool: MakePool) -> None:
    last = await postgres.connect("odd")
    async with make_pool(refresh_interval=0) as pool:
        stopping = asyncio.create_task(postgres.server.halt("smart"))
        exc: BaseException | None = None
        async with asyncio.timeout(10):
            while exc is None:
                try:
                    exc = await error_of_login(postgres.dsn, postgres.pair.even)
                except AssertionError:
                    continue
        assert (exc.sqlstate, classify(exc)) == ("57P03", Verdict.OUTAGE)
        assert "shutting down" in str(exc)
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        await eventually(lambda: pool.stats().outages)
        await last.close()
        await stopping
        await postgres.server.resume()
        assert await waiting == 1
        stats = pool.stats()
    assert stats.accounts["odd"].refused == stats.accounts["even"].refused == 0
    assert postgres.source.fetches == 1
