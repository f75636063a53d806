"""Silent logins hold up nobody, and slow logins are not cut off."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from support.proxy import Proxy

import aiopqr
from aiopqr._connect import maker_of
from aiopqr.testing import RotatingPostgres

PAIR = aiopqr.CredentialPair(aiopqr.Credential("a", "x"), aiopqr.Credential("b", "y"))


async def eventually(fact: Callable[[], object], *, within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not fact():
            await asyncio.sleep(0.005)


class Hole:
    """A host that accepts connections and then stays silent."""

    port = accepted = open = 0

    async def swallow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        try:
            while await reader.read(65536):
                pass
        except OSError:
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def hole() -> AsyncIterator[Hole]:
    hole = Hole()
    async with await asyncio.start_server(hole.swallow, "127.0.0.1", 0) as server:
        hole.port = server.sockets[0].getsockname()[1]
        yield hole


def hosts(postgres: RotatingPostgres, *ports: int) -> str:
    return f"postgresql://{','.join(f'127.0.0.1:{port}' for port in ports)}/{postgres.database}"


async def test_a_silent_host_costs_a_second_once_and_is_then_tried_last(postgres: RotatingPostgres, hole: Hole) -> None:
    dsn = hosts(postgres, hole.port, postgres.server.port)
    async with aiopqr.create_pool(dsn, credentials=postgres.source, ssl="disable", min_size=0, max_size=5) as pool:
        began = time.monotonic()
        assert await pool.fetchval("select 1") == 1
        assert 0.9 < time.monotonic() - began < 5
        assert hole.accepted == 1
        for con in [await pool.acquire() for _ in range(5)]:
            await pool.release(con)
        assert hole.accepted == 1
        assert (pool.stats().outages, pool.stats().failed) == (0, 0)
    await eventually(lambda: hole.open == 0)  # the loser was closed


async def test_many_connects_at_once_get_past_a_silent_host(postgres: RotatingPostgres, hole: Hole) -> None:
    dsn = hosts(postgres, hole.port, postgres.server.port)
    options: dict[str, Any] = {"credentials": postgres.source, "ssl": "disable"}
    async with aiopqr.Connector(dsn, **options) as maker, asyncio.timeout(10):
        for con in await asyncio.gather(*(maker.connect() for _ in range(10))):
            await con.close()


async def test_a_refusal_ends_the_round_and_is_not_repeated_at_each_host(postgres: RotatingPostgres) -> None:
    dsn = hosts(postgres, *[postgres.server.port] * 3)
    await postgres.rotate("odd", store_delay=None)
    async with aiopqr.Connector(dsn, credentials=postgres.source, ssl="disable") as maker:
        await (await maker.connect()).close()
    assert postgres.failed_logins() == 1


async def test_each_address_of_a_name_has_its_turn(
    postgres: RotatingPostgres, hole: Hole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one of a name's three addresses listens on the server's port."""
    real = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "db.test":
            return real(host, *args, **kwargs)
        ips = ("127.0.0.9", "127.0.0.8", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, postgres.server.port)) for ip in ips]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    dsn = f"postgresql://db.test:{postgres.server.port}/{postgres.database}"
    async with aiopqr.Connector(dsn, credentials=postgres.source, ssl="disable") as maker:
        await (await maker.connect(timeout=10)).close()


class ForgetfulProxy(Proxy):
    """A load balancer that fails over: earlier flows are swallowed for good, new ones work."""

    generation = 0

    async def _pump(self, reader: Any, writer: Any, budget: int | None) -> None:
        born = self.generation
        while (data := await reader.read(65536)) and born == self.generation and self._flowing.is_set():
            writer.write(data)
            await writer.drain()
        if born != self.generation or not self._flowing.is_set():
            await asyncio.Event().wait()
        writer.close()


async def test_hung_logins_hold_nobody_up_when_the_path_is_back(postgres: RotatingPostgres) -> None:
    async with ForgetfulProxy(postgres.server.host, postgres.server.port) as proxy:
        maker = aiopqr.Connector(proxy.dsn_of(postgres.dsn), credentials=postgres.source, ssl="disable")
        async with maker:
            await (await maker.connect()).close()
            proxy.blackhole()
            waiting = [asyncio.create_task(maker.connect()) for _ in range(3)]
            await eventually(lambda: maker.stats().outages == 1)
            in_flight = [login for login in maker_of(maker)._logins._in_flight.values() if not login.is_cancelled]
            assert len(in_flight) <= len(waiting) + 1
            proxy.heal()
            began = time.monotonic()
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert time.monotonic() - began < 2.5
            async with asyncio.timeout(10):
                for con in await asyncio.gather(*waiting):
                    await con.close()
            assert (maker.stats().outages, maker.stats().failed) == (1, 0)


async def test_an_account_that_the_server_is_slow_to_refuse_does_not_hold_up_the_other(
    postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``auth_delay``. The late refusal still counts, once."""
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.1)
    refuse = asyncio.Event()

    async def slow(*args: Any, user: str, **kwargs: Any) -> asyncpg.Connection:
        if user == postgres.usernames[0]:
            await refuse.wait()
            raise asyncpg.InvalidPasswordError("password authentication failed")
        return await asyncpg.connect(*args, user=user, **kwargs)

    maker = aiopqr.Connector(postgres.dsn, credentials=postgres.source, connect=slow, ssl="disable")
    async with maker:
        async with asyncio.timeout(5):
            made = await asyncio.gather(*(maker.connect() for _ in range(4)))
        assert maker.stats().accounts["odd"].refused == 0
        refuse.set()
        await eventually(lambda: maker.stats().accounts["odd"].refused)
        for con in made:
            await con.close()
        assert maker.stats().accounts["odd"].refused_for is not None


async def test_a_connect_that_ends_leaves_no_login_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.05)
    running = 0

    async def hang(*args: Any, **kwargs: Any) -> asyncpg.Connection:
        nonlocal running
        running += 1
        try:
            return await asyncio.Event().wait()
        finally:
            running -= 1

    async with aiopqr.Connector(credentials=PAIR, connect=hang) as maker:
        waiting = asyncio.create_task(maker.connect())
        await eventually(lambda: running == 2)
        waiting.cancel()
        await asyncio.wait({waiting})
        await eventually(lambda: running == 0)
        with pytest.raises(aiopqr.ConnectTimeout, match="has not answered a login"):
            await maker.connect(timeout=0.3)
        await eventually(lambda: running == 0)
        assert maker.stats().failed >= 1


class Hanging:
    """A ``connect=`` that hangs, and counts how many were begun, and how many ran at the same time."""

    def __init__(self) -> None:
        self.begun = self.running = self.most = 0

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1


async def test_there_is_no_extra_login_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.05)
    hang = Hanging()
    async with aiopqr.Connector(credentials=PAIR, connect=hang) as maker:
        maker_of(maker)._logins.room = lambda: 0
        with pytest.raises(aiopqr.ConnectTimeout):
            await maker.connect(timeout=0.5)
    assert hang.most == 1


async def test_extra_logins_come_one_at_a_time_and_three_a_second_for_all_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.02)
    hang, connects = Hanging(), 8
    async with aiopqr.Connector(credentials=PAIR, connect=hang) as maker:
        began = time.monotonic()
        ended = await asyncio.gather(*(maker.connect(timeout=1.5) for _ in range(connects)), return_exceptions=True)
        took = time.monotonic() - began
    assert {type(one) for one in ended} == {aiopqr.ConnectTimeout}
    assert hang.most == connects + 1
    assert 2 <= hang.begun - connects <= 1 + 3 * took


async def test_a_silent_server_never_gets_more_logins_than_there_are_connects_and_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.02)
    monkeypatch.setattr("aiopqr._connect.outage.PATIENCE_UNKNOWN", 0.5)
    hang, connects = Hanging(), 5
    async with aiopqr.Connector(credentials=PAIR, connect=hang) as maker:
        maker_of(maker)._logins.room = lambda: 1
        await asyncio.gather(*(maker.connect(timeout=4) for _ in range(connects)), return_exceptions=True)
    assert hang.begun > 2 * connects
    assert hang.most <= connects + 1


async def test_a_connect_goes_on_if_the_room_for_its_extra_login_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.02)
    monkeypatch.setattr("aiopqr._connect.outage.PATIENCE_UNKNOWN", 1.0)
    hang, room = Hanging(), 2
    async with aiopqr.Connector(credentials=PAIR, connect=hang) as maker:
        maker_of(maker)._logins.room = lambda: room
        connecting = asyncio.create_task(maker.connect(timeout=4))
        await eventually(lambda: hang.begun == 7)  # the next extra login would begin after twice the patience
        room = 0
        with pytest.raises(aiopqr.ConnectTimeout):
            await connecting


async def test_a_connect_does_not_wait_for_an_extra_login_that_another_one_has_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.05)
    begun: list[asyncio.Future[Any]] = []
    room = 1

    async def connect(*args: Any, **kwargs: Any) -> Any:
        begun.append(asyncio.get_running_loop().create_future())
        return await begun[-1]

    async with aiopqr.Connector(credentials=PAIR, connect=connect) as maker:
        maker_of(maker)._logins.room = lambda: room
        first = asyncio.create_task(maker.connect())
        await eventually(lambda: len(begun) == 2)
        room = 0
        second = asyncio.create_task(maker.connect())
        await eventually(lambda: len(begun) == 3 and begun[1].cancelled())
        begun[0].set_exception(ConnectionRefusedError())
        await eventually(lambda: len(begun) == 4, within=3)
        for connecting in (first, second):
            connecting.cancel()
        await asyncio.wait({first, second})


class Reticent(Proxy):
    """Does not report whether the server is a standby, and becomes silent when it is asked for the second time."""

    asked = 0

    async def _pump(self, reader: Any, writer: Any, budget: int | None) -> None:
        while data := await reader.read(65536):
            self.asked += data.count(b"pg_catalog.pg_is_in_recovery")  # not in the answer
            if self.asked == 2:
                await asyncio.Event().wait()
            writer.write(data.replace(b"in_hot_standby", b"xx_hot_standby"))
            await writer.drain()
        writer.close()


async def test_the_timeout_covers_the_question_whether_the_server_is_a_standby(postgres: RotatingPostgres) -> None:
    async with Reticent(postgres.server.host, postgres.server.port) as proxy:
        dsn = f"postgresql://127.0.0.1:{proxy.port},localhost:{proxy.port}/{postgres.database}"
        maker = aiopqr.Connector(dsn, credentials=postgres.source, ssl="disable", target_session_attrs="prefer-standby")
        async with maker, asyncio.timeout(10):
            with pytest.raises(aiopqr.ConnectTimeout):
                await maker.connect(timeout=0.7)
        assert proxy.asked == 2


async def test_logins_that_are_silent_until_their_password_is_superseded_give_way_to_the_new_one(
    postgres: RotatingPostgres,
) -> None:
    superseded = {credential.password.reveal() for credential in (await postgres.source.fetch()).credentials()}
    begun = asyncio.Event()

    async def connect(*args: Any, **kwargs: Any) -> Any:
        if kwargs["password"]() in superseded:
            begun.set()
            await asyncio.Event().wait()
        return await asyncpg.connect(*args, **kwargs)

    maker = aiopqr.Connector(postgres.dsn, credentials=postgres.source, connect=connect, ssl="disable")
    async with maker, asyncio.timeout(10):
        connecting = asyncio.create_task(maker.connect())
        await begun.wait()
        await postgres.rotate("odd")
        await postgres.rotate("even")
        await maker.refresh()
        await (await connecting).close()


async def test_a_connection_that_is_lost_right_after_its_login_is_replaced_by_another(
    postgres: RotatingPostgres,
) -> None:
    lost: list[asyncpg.Connection] = []

    async def connect(*args: Any, **kwargs: Any) -> Any:
        con = await asyncpg.connect(*args, **kwargs)
        if not lost:
            lost.append(con)
            con.terminate()
        return con

    async with aiopqr.create_pool(postgres.dsn, credentials=postgres.source, connect=connect, min_size=0) as pool:
        assert await pool.fetchval("select 1") == 1
    assert len(lost) == 1


class Together:
    """A ``connect=`` whose first two logins end at the same moment: each with its error, or a connection if None."""

    def __init__(self, postgres: RotatingPostgres, *errors: Exception | None) -> None:
        self._postgres = postgres
        self._errors = list(errors)
        self._both = asyncio.Event()
        self.users: list[str] = []

    async def __call__(self, *args: Any, user: str, **kwargs: Any) -> Any:
        self.users.append(user)
        con = await self._postgres.connect()
        if not self._errors:
            return con
        error = self._errors.pop(0)
        if not self._errors:
            self._both.set()
        if error is not None:
            await con.close()
        await self._both.wait()
        await asyncio.sleep(0.1)
        if error is not None:
            raise error
        return con


async def test_a_login_that_succeeds_wins_though_another_fails_at_the_same_moment(
    postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.1)
    connect = Together(postgres, asyncpg.InvalidCatalogNameError("no such database"), None)
    async with aiopqr.Connector(postgres.dsn, credentials=postgres.source, connect=connect) as maker:
        await (await maker.connect(timeout=10)).close()
    assert len(connect.users) == 2


async def test_two_logins_of_an_account_that_are_refused_at_the_same_moment_lead_to_the_other_account(
    postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr._connect.outage.SILENCE", 0.1)
    monkeypatch.setattr("aiopqr._connect.account_choice.Alternator.fallback", _same_account_twice())
    refused = asyncpg.InvalidPasswordError("password authentication failed")
    connect = Together(postgres, refused, refused)
    async with aiopqr.Connector(postgres.dsn, credentials=postgres.source, connect=connect) as maker:
        await (await maker.connect(timeout=10)).close()
    first, second, last = connect.users
    assert first == second != last


def _same_account_twice() -> Any:
    """``Alternator.fallback``, but the first call, for the extra login, finds no other account."""
    calls = iter(range(100))
    real = aiopqr._connect.account_choice.Alternator.fallback
    return lambda self, attempt, now: None if next(calls) == 0 else real(self, attempt, now)
