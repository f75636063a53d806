"""An SQLAlchemy engine on a connector: it alternates, it replaces what is superseded, and dispose() ends everything."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import logging
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

import aiopqr
from aiopqr.events import Event, FellBack
from aiopqr.integrations.sqlalchemy import async_engine, create_async_engine
from aiopqr.testing import RotatingPostgres
from aiopqr.testing.server import run_apart

ROTATIONS = 30 if os.environ.get("AIOPQR_PROOF") else 4


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    extra: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)


def url(postgres: RotatingPostgres) -> str:
    return postgres.dsn.replace("postgresql://", "postgresql+asyncpg://")


async def user(engine: AsyncEngine) -> str:
    async with engine.connect() as con:
        return str(await con.scalar(sa.text("select session_user")))


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def test_connections_take_the_accounts_in_turn(postgres: RotatingPostgres) -> None:
    async with (
        async_engine(url(postgres), credentials=postgres.source) as engine,
        engine.connect() as one,
        engine.connect() as two,
    ):
        users = [await con.scalar(sa.text("select session_user")) for con in (one, two)]
    assert users == list(postgres.usernames)


async def test_an_engine_and_a_pool_that_share_a_refresher_step_aside_together(postgres: RotatingPostgres) -> None:
    odd, even = postgres.usernames
    staged = aiopqr.Credential(even, "staged")
    postgres.source.pair = dataclasses.replace(postgres.pair, pending=staged)
    async with (
        aiopqr.Refresher(postgres.source) as refresher,
        async_engine(url(postgres), credentials=refresher, poolclass=NullPool) as engine,
        aiopqr.create_pool(postgres.dsn, credentials=refresher, min_size=3, max_size=3) as pool,
    ):
        assert {await user(engine) for _ in range(3)} == {odd}
        async with pool.acquire() as one, pool.acquire() as two, pool.acquire() as three:
            assert {await con.fetchval("SELECT session_user") for con in (one, two, three)} == {odd}
        assert await postgres.sessions("even") == []
        postgres.source.pair = postgres.pair
        await refresher.refresh()
        assert {await user(engine) for _ in range(3)} == {odd, even}


async def test_the_orm_works_as_it_does_on_sqlalchemys_own_engine(postgres: RotatingPostgres) -> None:
    async with async_engine(postgres.dsn, credentials=postgres.source) as engine:
        async with engine.begin() as con:
            await con.run_sync(Base.metadata.create_all)
        sessions = async_sessionmaker(engine)
        async with sessions.begin() as session:
            session.add(Note(text="kept", extra={"a": 1}))
        async with sessions() as session:
            note = (await session.scalars(sa.select(Note))).one()
    assert (note.text, note.extra) == ("kept", {"a": 1})


@pytest.mark.proof
async def test_sessions_see_no_error_while_passwords_change(postgres: RotatingPostgres) -> None:
    postgres.source.interval = 0.25
    done, stop = 0, asyncio.Event()

    async def work(engine: AsyncEngine) -> None:
        nonlocal done
        while not stop.is_set():
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(sa.text("select 1"))
            done += 1
            await asyncio.sleep(0.001)

    async with (
        async_engine(
            url(postgres), credentials=postgres.source, max_lifetime=0.5, pool_size=5, max_overflow=3
        ) as engine,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(10):
            tasks.create_task(work(engine))
        for parity in itertools.islice(itertools.cycle(["odd", "even"]), ROTATIONS):
            await postgres.rotate(parity)
            await asyncio.sleep(0.75)  # the spacing of the rotations
        stop.set()
    assert done > 100
    assert postgres.failed_logins() <= 2 * ROTATIONS


async def test_a_connection_of_a_superseded_password_is_replaced_when_it_is_checked_out(
    postgres: RotatingPostgres,
) -> None:
    async with (
        aiopqr.Connector(credentials=postgres.source) as connector,
        async_engine(url(postgres), connector=connector, pool_size=1) as engine,
    ):
        assert await user(engine) == postgres.pair.odd.username
        before = await backend(engine)
        await postgres.rotate("even")
        await connector.refresh()
        assert await backend(engine) == before  # the other account's password does not concern it
        await postgres.rotate("odd")
        await connector.refresh()
        assert await backend(engine) != before
        assert len(await postgres.sessions()) == 1


async def test_a_connection_that_is_too_old_is_replaced(postgres: RotatingPostgres) -> None:
    async with async_engine(url(postgres), credentials=postgres.source, max_lifetime=1e-6, pool_size=1) as engine:
        assert await backend(engine) != await backend(engine)


async def test_connections_of_superseded_passwords_serve_on_while_both_accounts_are_refused(
    postgres: RotatingPostgres,
) -> None:
    async with (
        aiopqr.Connector(credentials=postgres.source) as connector,
        async_engine(url(postgres), connector=connector, max_lifetime=1e-6, pool_size=1) as engine,
    ):
        before = await backend(engine)
        await postgres.rotate_both(store_delay=None)
        with pytest.raises(aiopqr.CredentialsRefused):
            await connector.connect(postgres.dsn, timeout=0.5)
        assert await backend(engine) == before
        postgres.source.pair = postgres.pair
        await connector.refresh()
        assert await backend(engine) != before


async def test_refused_credentials_are_told_as_such_without_a_password(postgres: RotatingPostgres) -> None:
    await postgres.rotate_both(store_delay=None)
    async with async_engine(url(postgres), credentials=postgres.source, connect_args={"timeout": 0.5}) as engine:
        with pytest.raises((aiopqr.CredentialsRefused, sa.exc.DBAPIError)) as caught:  # 2.1 wraps what 2.0 lets through
            await user(engine)
    chain: list[BaseException] = [caught.value]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    assert any(isinstance(link, aiopqr.CredentialsRefused) for link in chain)
    printed = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    for credential in postgres.source.pair.credentials():
        assert credential.password.reveal() not in printed


async def test_the_urls_query_and_connect_args_reach_dialect_and_driver(postgres: RotatingPostgres) -> None:
    async with (
        async_engine(
            f"{url(postgres)}?prepared_statement_cache_size=0&application_name=",
            credentials=postgres.source,
            connect_args={"server_settings": {"application_name": "orders"}, "statement_cache_size": 0},
        ) as engine,
        engine.connect() as con,
    ):
        assert await con.scalar(sa.text("show application_name")) == "orders"


async def test_other_pools_of_sqlalchemy_work(postgres: RotatingPostgres) -> None:
    async with async_engine(url(postgres), credentials=postgres.source, poolclass=NullPool) as engine:
        assert [await user(engine), await user(engine)] == list(postgres.usernames)


async def test_listeners_hear_of_a_fallback(postgres: RotatingPostgres) -> None:
    events: list[Event] = []
    await postgres.rotate("odd", store_delay=None)
    async with async_engine(
        url(postgres), credentials=postgres.source, listeners=[events.append], name="orders"
    ) as engine:
        assert await user(engine) == postgres.pair.even.username
    assert [event.name for event in events if isinstance(event, FellBack)] == ["orders"]


# The end.


async def test_dispose_ends_the_connector_and_a_later_use_makes_another(postgres: RotatingPostgres) -> None:
    engine = create_async_engine(url(postgres), credentials=postgres.source)
    await user(engine)
    await engine.dispose()
    assert not refreshers()
    await user(engine)
    assert refreshers()
    await engine.dispose()
    assert not refreshers()


async def test_dispose_does_not_close_a_connector_that_was_given(postgres: RotatingPostgres) -> None:
    async with aiopqr.Connector(postgres.dsn, credentials=postgres.source) as connector:
        async with async_engine("postgresql+asyncpg://", connector=connector) as engine:
            await user(engine)
        con = await connector.connect()
        await con.close()


async def test_first_connects_at_once_share_one_connector(postgres: RotatingPostgres) -> None:
    async with async_engine(url(postgres), credentials=postgres.source) as engine:
        users = await asyncio.gather(*(held_user(engine) for _ in range(4)))
        assert len(refreshers()) == 1
    assert sorted(users) == sorted(postgres.usernames * 2)


async def test_a_store_that_is_down_fails_the_connect_and_leaves_nothing(postgres: RotatingPostgres) -> None:
    closed = 0

    async def aclose() -> None:
        nonlocal closed
        closed += 1

    postgres.source.aclose = aclose  # type: ignore[attr-defined]
    postgres.source.error = aiopqr.SourceError("the store is down")
    async with async_engine(url(postgres), credentials=postgres.source) as engine:
        with pytest.raises(aiopqr.SourceError, match="the store is down"):
            await user(engine)
        assert closed == 1
        postgres.source.error = None
        assert await user(engine) == postgres.pair.odd.username


def test_one_engine_serves_one_event_loop_after_the_other(postgres: RotatingPostgres) -> None:
    engine = create_async_engine(url(postgres), credentials=postgres.source)

    async def use() -> None:
        await asyncio.gather(user(engine), user(engine))
        await engine.dispose()

    asyncio.run(use())
    asyncio.run(use())


@pytest.mark.leaves_tasks
async def test_the_sync_engines_dispose_ends_the_connector_too(postgres: RotatingPostgres) -> None:
    engine = create_async_engine(url(postgres), credentials=postgres.source, poolclass=NullPool)
    await user(engine)
    engine.sync_engine.dispose()
    await eventually(lambda: not refreshers())


@pytest.mark.leaves_tasks
async def test_an_engine_that_is_dropped_undisposed_says_so(postgres: RotatingPostgres) -> None:
    engine = create_async_engine(url(postgres), credentials=postgres.source, poolclass=NullPool)
    await user(engine)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del engine
        await eventually(lambda: gc.collect() is None or any("unclosed connector" in str(w.message) for w in caught))


# Several event loops, and several processes.


def on_new_loops(engine: AsyncEngine, count: int, ending: Callable[[Any], Any] = asyncio.run) -> list[str]:
    return [ending(user(engine)) for _ in range(count)]


def without_cleaning_up(work: Any) -> Any:
    """Like asyncio.run(), but what is still running is left as it is."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run, without_cleaning_up])
@pytest.mark.filterwarnings(
    "ignore:.*unclosed", "ignore:coroutine .* was never awaited"
)  # what a loop leaves behind if it is simply closed
def test_one_loop_after_the_other_hears_of_rotations(
    runner: Any, postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_async_engine(
        url(postgres), credentials=postgres.source, poolclass=NullPool, connect_args={"timeout": 10}
    )
    assert on_new_loops(engine, 3, runner) == [postgres.usernames[0]] * 3
    for parity in ("odd", "even", "odd"):
        run_apart(postgres.rotate(parity))
        on_new_loops(engine, 2, runner)
    assert postgres.failed_logins() == 0
    asyncio.run(engine.dispose())
    gc.collect()
    assert [record.message for record in caplog.records if "Task was destroyed" not in record.message] == []


def test_loops_in_several_threads_share_an_engine(postgres: RotatingPostgres) -> None:
    engine = create_async_engine(url(postgres), credentials=postgres.source, poolclass=NullPool)
    asyncio.run(user(engine))  # SQLAlchemy's own first connect holds a lock that belongs to one loop
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: asyncio.run(user(engine)), range(12))) == [postgres.usernames[0]] * 12
    asyncio.run(engine.dispose())


async def test_dispose_ends_the_connectors_of_other_loops_too(postgres: RotatingPostgres) -> None:
    engine = create_async_engine(url(postgres), credentials=postgres.source, poolclass=NullPool)
    await user(engine)

    async def elsewhere() -> None:
        await user(engine)
        await engine.dispose()

    await asyncio.to_thread(asyncio.run, elsewhere())
    await eventually(lambda: not refreshers())
    assert await user(engine) in postgres.usernames
    await engine.dispose()


@pytest.mark.filterwarnings("ignore:.*unclosed")  # the connection of the first loop, which nobody closes
def test_the_next_loop_begins_anew_after_a_dispose_that_closes_nothing(postgres: RotatingPostgres) -> None:
    engine = create_async_engine(url(postgres), credentials=postgres.source)
    asyncio.run(user(engine))
    gc.collect()
    run_apart(postgres.rotate("odd"))

    async def anew() -> None:
        await engine.dispose(close=False)
        await user(engine)
        await engine.dispose()

    asyncio.run(anew())
    assert postgres.failed_logins() == 0
    run_apart(postgres.terminate())
    gc.collect()


FORK = """
import asyncio, os, sys, logging
import sqlalchemy as sa
from sqlalchemy.pool import NullPool
import aiopqr
from aiopqr.integrations.sqlalchemy import create_async_engine

logging.basicConfig()
url, null = sys.argv[1], sys.argv[2] == "null"
accounts = [line.split() for line in sys.stdin.read().splitlines()]
pair = aiopqr.CredentialPair(*(aiopqr.Credential(*account) for account in accounts))
async def fetch():
    return pair
engine = create_async_engine(url, credentials=fetch, **({"poolclass": NullPool} if null else {}))

async def use():
    async with engine.connect() as con:
        return await con.scalar(sa.text("select session_user"))

async def child():
    await engine.dispose(close=False)
    await use()
    await engine.dispose()

async def parent():
    before = await use()
    if not (pid := os.fork()):
        asyncio._set_running_loop(None)
        asyncio.run(use() if null else child())
        os._exit(0)
    assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0
    assert await use() in (before, pair.even.username)
    await engine.dispose()

asyncio.run(parent())
"""


@pytest.mark.parametrize("pool", ["null", "queue"])
def test_a_forked_child_makes_a_connector_of_its_own(postgres: RotatingPostgres, pool: str) -> None:
    accounts = "".join(f"{one.username} {one.password.reveal()}\n" for one in postgres.pair.credentials())
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, url(postgres), pool],  # of a fork with threads
        input=accounts,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


# Nothing of ours is in the way.


async def test_conn_info_is_the_users_and_no_statement_is_slowed_down(postgres: RotatingPostgres) -> None:
    async with async_engine(url(postgres), credentials=postgres.source) as engine, engine.connect() as con:
        assert (await con.get_raw_connection()).info == {}
        assert not con.sync_connection._has_events  # type: ignore[union-attr]
        assert not engine.sync_engine._has_events


async def test_listeners_of_the_users_own_are_still_called(postgres: RotatingPostgres) -> None:
    heard: list[str] = []
    sa.event.listen(sa.Engine, "before_cursor_execute", heard_all := lambda *args: heard.append("all"))
    try:
        async with async_engine(url(postgres), credentials=postgres.source) as engine:
            sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: heard.append("one"))
            await user(engine)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", heard_all)
    assert set(heard) == {"all", "one"}


# What cannot work.


@pytest.mark.parametrize(
    "bad",
    [
        "postgresql+asyncpg://someone@host/db",
        "postgresql+asyncpg://someone:hunter2@host/db",
        "postgresql+asyncpg://host/db?password=hunter2",
        "postgresql+psycopg://host/db",
        "mysql://hunter2@host/db",
        "hunter2",
    ],
)
def test_a_url_that_cannot_work_is_refused_without_being_shown(bad: str) -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="url ") as caught:
        create_async_engine(bad, credentials=unused)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("query", "spelled"),
    [
        ("sslmode=require", "?ssl=require"),
        ("sslrootcert=/x.pem", "create_default_context"),
        ("sslcert=/x.pem&sslkey=/y.pem", "load_cert_chain"),
        ("connect_timeout=3", '"timeout": ...'),
        ("application_name=orders", "server_settings"),
        ("options=-csearch_path%3Dx", "server_settings"),
    ],
)
def test_what_other_drivers_call_otherwise_is_named_with_its_right_spelling(query: str, spelled: str) -> None:
    with pytest.raises(aiopqr.ConfigurationError, match=re.escape(spelled)) as caught:
        create_async_engine(f"postgresql+asyncpg://host/db?{query}", credentials=unused)
    assert query.partition("=")[0] in str(caught.value)
    key, value = query.partition("&")[0].split("=", 1)
    with pytest.raises(aiopqr.ConfigurationError, match=re.escape(spelled)):
        create_async_engine("postgresql+asyncpg://host/db", credentials=unused, connect_args={key: value})


async def test_the_right_spelling_of_sslmode_works(postgres: RotatingPostgres) -> None:
    async with async_engine(f"{url(postgres)}?ssl=disable", credentials=postgres.source) as engine:
        assert await user(engine) == postgres.pair.odd.username


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"credentials": 1, "connector": 2},
        {"credentials": 1, "async_creator": 2},
        {"credentials": 1, "connect_args": {"password": "x"}},
        {"credentials": 1, "max_lifetime": -1.0},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(aiopqr.ConfigurationError):
        create_async_engine("postgresql+asyncpg://", **options)


async def test_sqlalchemys_own_log_shows_no_password(
    postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with async_engine(
        url(postgres), credentials=postgres.source, max_lifetime=1e-6, echo="debug", echo_pool="debug"
    ) as engine:
        await user(engine)
        await user(engine)
    assert "replacing a connection, because it is too old" in caplog.text
    for credential in postgres.pair.credentials():
        assert credential.password.reveal() not in caplog.text


async def unused() -> aiopqr.CredentialPair:
    raise AssertionError


async def backend(engine: AsyncEngine) -> int:
    async with engine.connect() as con:
        return int(await con.scalar(sa.text("select pg_backend_pid()")))


async def held_user(engine: AsyncEngine) -> str:
    async with engine.connect() as con:
        return str(await con.scalar(sa.text("select session_user from pg_sleep(0.1)")))


def refreshers() -> list[str]:
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).endswith("-refresh")]
