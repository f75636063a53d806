"""The connector alone: an ordinary connection, made with the account whose turn it is."""

from __future__ import annotations

import asyncio
import os
import warnings
from dataclasses import replace

import asyncpg
import pytest

import aiopqr
from aiopqr._connect import maker_of
from aiopqr.credentials import Endpoint
from aiopqr.testing import RotatingPostgres


def connector(postgres: RotatingPostgres, **options: object) -> aiopqr.Connector:
    return aiopqr.Connector(postgres.dsn, **{"credentials": postgres.source, "ssl": "disable", **options})


async def test_it_makes_plain_connections_that_alternate(postgres: RotatingPostgres) -> None:
    async with connector(postgres) as maker:
        made = [await maker.connect() for _ in range(4)]
        assert type(made[0]) is asyncpg.Connection
        users = [await con.fetchval("select session_user") for con in made]
        assert users == [*postgres.usernames] * 2
        assert maker.stats().accounts["odd"].open == 2
        for con in made:
            await con.close()
        assert maker.stats().accounts["odd"].open == 0


async def test_a_connection_outlives_its_connector(postgres: RotatingPostgres) -> None:
    async with connector(postgres) as maker:
        con = await maker.connect()
    assert await con.fetchval("select 1") == 1
    await con.close()
    with pytest.raises(aiopqr.PoolClosing):
        await maker.connect()


async def test_arguments_of_a_call_replace_the_connectors_own(postgres: RotatingPostgres) -> None:
    async with connector(postgres) as maker:
        con = await maker.connect(server_settings={"application_name": "migration"})
        assert await con.fetchval("show application_name") == "migration"
        await con.close()
        with pytest.raises(aiopqr.ConfigurationError, match="user="):
            await maker.connect(user="me")


async def test_it_knows_a_connection_of_superseded_credentials(postgres: RotatingPostgres) -> None:
    async with connector(postgres) as maker:
        odd, even = await maker.connect(), await maker.connect()
        await postgres.rotate("odd")
        await maker.refresh()
        assert maker.is_superseded(odd)
        assert not maker.is_superseded(even)
        await odd.close()
        await even.close()


async def test_a_connect_begun_with_superseded_credentials_is_known_as_such_when_it_arrives(
    postgres: RotatingPostgres,
) -> None:
    """HikariCP takes the version when the connection arrives, and so keeps old passwords for a whole lifetime."""
    arrived = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(*args: object, **kwargs: object) -> asyncpg.Connection:
        con = await asyncpg.connect(*args, **kwargs)
        arrived.set()
        await go_on.wait()
        return con

    async with connector(postgres, connect=slow) as maker:
        connecting = asyncio.create_task(maker.connect())
        await arrived.wait()
        await postgres.rotate("odd")
        await maker.refresh()
        go_on.set()
        con = await connecting
        assert maker.is_superseded(con)
        await con.close()


async def test_the_secrets_endpoint_serves_where_nothing_else_names_a_server(postgres: RotatingPostgres) -> None:
    endpoint = Endpoint(postgres.server.host, postgres.server.port, postgres.database)
    postgres.source.pair = replace(postgres.pair, endpoint=endpoint)
    async with aiopqr.create_pool(credentials=postgres.source, min_size=0, ssl="disable") as pool:
        assert await pool.fetchval("select current_database()") == postgres.database


async def test_a_fatal_error_is_raised_at_once_and_unmasked(postgres: RotatingPostgres) -> None:
    async with connector(postgres, database="nowhere") as maker:
        async with asyncio.timeout(5):
            with pytest.raises(asyncpg.InvalidCatalogNameError):
                await maker.connect()
        assert maker.stats().accounts["even"].refused == 0


async def test_a_server_that_is_down_is_told_after_the_timeout(unused_tcp_port: int) -> None:
    pair = aiopqr.CredentialPair(aiopqr.Credential("a", "x"), aiopqr.Credential("b", "y"))
    events: list[object] = []
    async with aiopqr.Connector(
        f"postgresql://127.0.0.1:{unused_tcp_port}/db", credentials=pair, timeout=0.4, listeners=[events.append]
    ) as maker:
        with pytest.raises(aiopqr.ConnectTimeout, match="ConnectionRefusedError") as caught:
            await maker.connect()
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert (maker.stats().outages, maker.stats().failed) == (1, 1)
    assert [type(event).__name__ for event in events] == ["ServerUnavailable"]


async def test_connects_that_meet_an_outage_knock_one_at_a_time(unused_tcp_port: int) -> None:
    pair = aiopqr.CredentialPair(aiopqr.Credential("a", "x"), aiopqr.Credential("b", "y"))
    at_once = most = total = 0

    async def knock(*args: object, **kwargs: object) -> asyncpg.Connection:
        nonlocal at_once, most, total
        at_once, total = at_once + 1, total + 1
        if total > 20:  # the first try of each
            most = max(most, at_once)
        try:
            await asyncio.sleep(0)
            raise ConnectionRefusedError
        finally:
            at_once -= 1

    async with aiopqr.Connector(credentials=pair, connect=knock, timeout=0.5) as maker:
        results = await asyncio.gather(*(maker.connect() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, aiopqr.ConnectTimeout) for result in results)
    assert most == 1
    assert total < 20 + 20


async def test_starting_in_two_tasks_at_once_keeps_one_state(postgres: RotatingPostgres) -> None:
    postgres.source.latency = 0.02
    maker = connector(postgres)
    states = []

    async def start() -> None:
        await maker.start()
        states.append(maker_of(maker)._state)

    await asyncio.gather(start(), start())
    assert states[0] is states[1]
    await maker.close()


async def test_a_connector_that_is_not_started_says_so() -> None:
    pair = aiopqr.CredentialPair(aiopqr.Credential("a", "x"), aiopqr.Credential("b", "y"))
    with pytest.raises(aiopqr.ConfigurationError, match="not started"):
        await aiopqr.Connector(credentials=pair).connect()


async def test_a_refused_account_is_probed_in_the_background_and_recovers(
    postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._refresh.quarantine.PROBE_FIRST", 0.05)
    recovered = asyncio.Event()

    def listen(event: object) -> None:
        if type(event).__name__ == "AccountRecovered":
            recovered.set()

    good = postgres.pair.odd
    async with connector(postgres, listeners=[listen]) as maker:
        await postgres.rotate("odd", store_delay=None)
        (await maker.connect()).terminate()
        await postgres.rotate("odd", password=good.password.reveal(), store_delay=None)
        while not recovered.is_set():
            (await maker.connect()).terminate()
            await asyncio.sleep(0.02)
        assert maker.stats().probes >= 1
        assert maker.stats().accounts["odd"].refused_for is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_forked_child_leaves_its_parents_connection_alone(postgres: RotatingPostgres) -> None:
    async with aiopqr.Connector(postgres.dsn, credentials=postgres.source) as connector:
        con = await connector.connect()
        with warnings.catch_warnings(action="ignore"):  # about forking a process that has threads
            child = os.fork()
        if child == 0:
            try:
                con.terminate()  # as SQLAlchemy's pool does with collected connections
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        async with asyncio.timeout(5):
            assert await con.fetchval("select 1") == 1
        await con.close()
