"""The stand-in between a raw connection and the real server: over TCP, a Unix socket and TLS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from aiopqr._pool import self_test, stand_in
from aiopqr._pool._asyncpg import wire
from aiopqr._pool.stand_in import StandIn, stand_in_for
from aiopqr.testing import EmbeddedPostgres, PostgresServer, RotatingPostgres
from aiopqr.testing.server import run_apart

from .conftest import eventually


@pytest.fixture(scope="session")
def aiopqr_server() -> Iterator[PostgresServer]:
    """A server that speaks TLS. (The embedded one does not.)"""
    with EmbeddedPostgres("system") as server:
        run_apart(server.enable_tls())
        yield server


class Subject:
    """A raw connection with its stand-in, and what has been reported."""

    def __init__(self, con: Any, stand_in_type: type[StandIn] = StandIn) -> None:
        self.con = con
        found = wire(con)
        assert found is not None
        self.transport, self.protocol = found
        self.goodbyes: list[BaseException] = []
        self.stand_in = stand_in_type(con, self.transport, self.protocol, self.goodbyes.append)
        self.transport.set_protocol(self.stand_in)

    def begin(self, query: str | None = None) -> asyncio.Future[BaseException | None]:
        outcome: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        assert self.stand_in.is_possible
        self.stand_in.reset(query or self.con.get_reset_query(), outcome.set_result)
        return outcome

    async def reset(self, query: str | None = None) -> BaseException | None:
        async with asyncio.timeout(10):
            return await self.begin(query)

    async def works(self) -> None:
        """It is lent, and asyncpg runs a query."""
        self.stand_in.lend()
        assert await self.con.fetchval("SELECT 1") == 1


MakeSubject = Callable[..., Any]


@pytest.fixture(params=["tcp", "unix", "tls"])
def subject(request: pytest.FixtureRequest, postgres: RotatingPostgres) -> MakeSubject:
    account = postgres.pair.odd
    assert account is not None
    dsn = {
        "tcp": postgres.server.dsn_of(postgres.database, sslmode="disable"),
        "unix": postgres.server.dsn_of(postgres.database, socket=True),
        "tls": postgres.server.dsn_of(postgres.database, sslmode="require"),
    }[request.param]

    @asynccontextmanager
    async def make(stand_in_type: type[StandIn] = StandIn) -> AsyncIterator[Subject]:
        con = await asyncpg.connect(dsn, user=account.username, password=account.password.reveal)
        try:
            yield Subject(con, stand_in_type)
        finally:
            await con.close(timeout=5)

    return make


async def test_a_reset_undoes_what_asyncpg_s_undoes_and_leaves_the_connection_usable(subject: MakeSubject) -> None:
    async with subject() as it:
        await it.con.execute("SET work_mem = '1MB'; LISTEN news; SELECT pg_advisory_lock(1)")
        await it.con.execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
        for _ in range(3):
            assert await it.reset() is None
            await it.works()
        state = await it.con.fetchrow(
            "SELECT current_setting('work_mem') AS memory, (SELECT count(*) FROM pg_listening_channels()) AS channels,"
            " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,"
            " (SELECT count(*) FROM pg_cursors WHERE is_holdable) AS cursors"
        )
        assert tuple(state) == ("4MB", 0, 0, 0)


async def test_a_parameter_status_a_notice_and_a_notification_reach_asyncpg_meanwhile(subject: MakeSubject) -> None:
    async with subject() as it:
        heard: list[str] = []
        it.con.add_log_listener(lambda _con, notice: heard.append(notice.message))
        await it.con.add_listener("news", lambda _con, _pid, _channel, payload: heard.append(payload))
        await it.con.execute("SET TimeZone = 'Asia/Tokyo'")
        assert it.con.get_settings().TimeZone == "Asia/Tokyo"
        noisy = "RESET ALL; NOTIFY news, 'to all'; DO $$ BEGIN RAISE NOTICE 'by the way'; END $$"
        assert await it.reset(noisy) is None
        await eventually(lambda: len(heard) == 2)
        assert sorted(heard) == ["by the way", "to all"]
        assert it.con.get_settings().TimeZone != "Asia/Tokyo"
        await it.con.remove_listener("news", lambda *_: None)
        await it.works()


async def test_any_fragmentation_is_understood(subject: MakeSubject) -> None:
    class Trickling(StandIn):
        __slots__ = ()
        whole = StandIn.data_received

        def data_received(self, data: bytes) -> None:
            for at in range(len(data)):
                self.whole(data[at : at + 1])

    async with subject(Trickling) as it:
        for _ in range(2):
            await it.con.execute("SET TimeZone = 'Asia/Tokyo'; SET application_name = 'changed'")
            assert await it.reset() is None
            assert it.con.get_settings().application_name != "changed"
            await it.works()


async def test_an_error_of_the_server_closes_the_connection_and_is_reported(subject: MakeSubject) -> None:
    async with subject() as it:
        error = await it.reset("SELECT 1; SELECT no_such_column")
        assert isinstance(error, asyncpg.UndefinedColumnError)
        assert it.con.is_closed()
        assert it.goodbyes == []


async def test_a_late_cancel_request_closes_the_connection(subject: MakeSubject, postgres: RotatingPostgres) -> None:
    async with subject() as it:
        outcome = it.begin("SELECT pg_sleep(30)")
        while not outcome.done():  # a cancel request that comes before the query does nothing
            await postgres.server.execute("SELECT pg_cancel_backend($1)", it.con.get_server_pid())
            await asyncio.sleep(0.01)
        assert isinstance(await outcome, asyncpg.QueryCanceledError)
        assert it.con.is_closed()


async def test_a_session_that_is_terminated_in_its_reset_is_lost(
    subject: MakeSubject, postgres: RotatingPostgres
) -> None:
    async with subject() as it:
        outcome = it.begin("SELECT pg_sleep(30)")
        await postgres.server.execute("SELECT pg_terminate_backend($1)", it.con.get_server_pid())
        error = await outcome
        assert isinstance(error, asyncpg.ConnectionDoesNotExistError)
        assert isinstance(error.__cause__, asyncpg.AdminShutdownError)
        assert it.con.is_closed()


@pytest.mark.parametrize("query", ["BEGIN; SELECT 1", "COPY (SELECT 1) TO STDOUT", "COPY pg_class FROM STDIN"])
async def test_a_query_that_is_no_reset_closes_the_connection(subject: MakeSubject, query: str) -> None:
    async with subject() as it:
        assert await it.reset(query) is not None
        assert it.con.is_closed()


async def test_an_empty_query_is_a_reset_that_does_nothing(subject: MakeSubject) -> None:
    async with subject() as it:
        assert await it.reset("-- nothing") is None
        await it.works()


async def test_the_goodbye_to_an_idle_connection_is_heard_at_once(
    subject: MakeSubject, postgres: RotatingPostgres
) -> None:
    async with subject() as it:
        ended: list[object] = []
        it.con.add_termination_listener(ended.append)
        assert it.stand_in.is_possible
        it.stand_in.watch()
        await postgres.server.execute("SELECT pg_terminate_backend($1)", it.con.get_server_pid())
        await eventually(lambda: it.goodbyes)
        assert isinstance(it.goodbyes[0].__cause__, asyncpg.AdminShutdownError)
        assert it.con.is_closed()
        await eventually(lambda: ended)


async def test_a_value_that_contains_a_goodbye_closes_nothing(subject: MakeSubject) -> None:
    class Halving(StandIn):
        __slots__ = ()
        whole = StandIn.data_received

        def data_received(self, data: bytes) -> None:
            self.whole(data[:-1])
            self.whole(data[-1:])

    fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
    goodbye = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields
    async with subject(Halving) as it:
        assert await it.con.fetchval("SELECT $1::bytea", goodbye) == goodbye
        it.stand_in.watch()
        assert it.goodbyes == []
        await it.works()


async def test_a_connection_that_was_lent_and_ran_nothing_is_watched_again(
    subject: MakeSubject, postgres: RotatingPostgres
) -> None:
    async with subject() as it:
        it.stand_in.watch()
        it.stand_in.lend()
        assert it.stand_in.is_possible
        it.stand_in.watch()
        await postgres.server.execute("SELECT pg_terminate_backend($1)", it.con.get_server_pid())
        await eventually(lambda: it.goodbyes)


async def test_a_connection_that_ends_without_a_word_is_closed(subject: MakeSubject) -> None:
    async with subject() as it:
        outcome = it.begin("SELECT pg_sleep(1)")
        it.transport.abort()
        error = await outcome
        assert isinstance(error, asyncpg.ConnectionDoesNotExistError)
        assert it.con.is_closed()


async def test_an_idle_connection_that_ends_without_a_word_is_reported_once(subject: MakeSubject) -> None:
    async with subject() as it:
        it.stand_in.watch()
        it.transport.abort()
        await eventually(lambda: it.con.is_closed())
        assert [type(error) for error in it.goodbyes] == [asyncpg.ConnectionDoesNotExistError]


async def test_a_connection_in_use_that_ends_without_a_word_is_left_to_its_user(subject: MakeSubject) -> None:
    async with subject() as it:
        it.stand_in.watch()
        it.stand_in.lend()
        it.transport.abort()
        await eventually(lambda: it.con.is_closed())
        assert it.goodbyes == []


async def test_terminating_a_watched_connection_is_no_goodbye(subject: MakeSubject) -> None:
    async with subject() as it:
        ended = asyncio.Event()
        it.stand_in.watch()
        it.con.add_termination_listener(lambda _: ended.set())
        it.con.terminate()
        await ended.wait()
        await asyncio.sleep(0.05)
        assert it.goodbyes == []


async def test_terminating_the_connection_ends_the_reset(subject: MakeSubject) -> None:
    async with subject() as it:
        outcome = it.begin("SELECT pg_sleep(1)")
        it.con.terminate()
        assert isinstance(await outcome, asyncpg.ConnectionDoesNotExistError)


async def test_closing_a_watched_connection_says_goodbye_to_the_server(
    subject: MakeSubject, postgres: RotatingPostgres
) -> None:
    mark = postgres.server.mark()
    async with subject() as it:
        it.stand_in.watch()
        await it.con.close(timeout=5)
    assert not [line for line in postgres.server.log_text(mark).splitlines() if "unexpected EOF" in line]
    assert it.goodbyes == []


async def test_it_is_not_possible_where_something_is_on_its_way(subject: MakeSubject) -> None:
    async with subject() as it:
        assert it.stand_in.is_possible
        it.transport.pause_reading()  # as asyncpg does in a COPY whose receiver is slow
        assert not it.stand_in.is_possible
        it.transport.resume_reading()
        it.transport.set_protocol(asyncio.Protocol())
        assert not it.stand_in.is_possible
        it.transport.set_protocol(it.stand_in)
        assert it.stand_in.is_possible
        it.con.terminate()
        assert not it.stand_in.is_possible


@pytest.mark.parametrize("subject", ["tcp", "unix"], indirect=True)  # under TLS, the transport below takes everything
async def test_it_is_not_possible_while_something_waits_to_be_written(subject: MakeSubject) -> None:
    async with subject() as it:
        query = asyncio.create_task(it.con.execute("SELECT '" + "x" * (1 << 24) + "'"))
        await eventually(lambda: it.transport.get_write_buffer_size())
        assert not it.stand_in.is_possible
        await query
        assert it.stand_in.is_possible


# When asyncpg, or what is around it, is not as expected.


async def test_an_agent_s_proxy_of_the_protocol_is_left_alone(postgres: RotatingPostgres) -> None:
    con: Any = await postgres.connect()
    try:

        class Proxy:
            _protocol = type("ProtocolProxy", (), {})()
            _transport = con._transport

        assert stand_in_for(Proxy(), lambda _: None) is None
        assert stand_in_for(object(), lambda _: None) is None
        con._transport.set_protocol(asyncio.Protocol())
        assert stand_in_for(con, lambda _: None) is None
        con._transport.set_protocol(con._protocol)
        stand_in = stand_in_for(con, lambda _: None)
        assert con._transport.get_protocol() is stand_in
    finally:
        await con.close()


async def test_the_self_test_succeeds_with_the_installed_asyncpg() -> None:
    self_test.run_self_test(StandIn)


class Deaf(self_test.Protocol):
    def data_received(self, data: bytes) -> None:
        super().data_received(data.replace(self_test.STATUS, b""))


class Confused(self_test.Protocol):
    def data_received(self, data: bytes) -> None:
        if self_test.NOTICE in data:
            raise RuntimeError("not now")
        super().data_received(data)


@pytest.mark.parametrize("protocol", [Deaf, Confused, lambda *_: None])
async def test_what_asyncpg_has_changed_turns_it_off_with_one_warning(
    protocol: Any, postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(self_test, "Protocol", protocol)
    stand_in._is_reliable.cache_clear()
    con = await postgres.connect()
    try:
        with caplog.at_level(logging.WARNING, "aiopqr"):
            assert stand_in_for(con, lambda _: None) is None
            assert stand_in_for(con, lambda _: None) is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"the internals of asyncpg {asyncpg.__version__} are not as expected" in caplog.text
    finally:
        stand_in._is_reliable.cache_clear()
        await con.close()
