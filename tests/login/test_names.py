"""Host names are looked up where other code's work cannot get in the way."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import asyncpg
import pytest
import uvloop

from aiopqr._login import names
from aiopqr._login.asyncpg_login import login
from aiopqr._login.names import addresses_of
from aiopqr.credentials import Secret

from .conftest import PASSWORD

Lookup = list[tuple[Any, ...]]


def found(*ips: str) -> Lookup:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 5432)) for ip in ips]


async def enter(port: int, host: str = "db.test", **kwargs: Any) -> Any:
    given = {"host": host, "port": port, "database": "postgres", "ssl": False, "timeout": 20.0, **kwargs}
    return await login(asyncpg.connect, **given, user="by_scram", password=Secret(PASSWORD))


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_login_needs_no_thread_of_the_default_executor(
    runner: Any, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found("127.0.0.1"))
    port = servers("16").port

    async def main() -> None:
        loop, hold = asyncio.get_running_loop(), threading.Event()
        filled = [loop.run_in_executor(None, hold.wait, 30) for _ in range(40)]
        try:
            con = await enter(port)
            await con.close()
        finally:
            hold.set()
            await asyncio.gather(*filled)

    runner(main())


async def test_all_addresses_of_a_name_are_tried(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found("127.0.0.9", "127.0.0.1"))
    con = await enter(servers("16").port)
    await con.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found("127.0.0.9", "127.0.0.8"))
    with pytest.raises(OSError, match="Multiple exceptions"):
        await enter(1)


async def test_a_name_that_does_not_exist_is_the_systems_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Lookup:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(socket.gaierror):
        await enter(1)


async def test_those_that_ask_together_ask_once_and_a_hung_lookup_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, hold, calls = asyncio.get_running_loop(), threading.Event(), 0

    def slow(*args: Any, **kwargs: Any) -> Lookup:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert hold.wait(20)
        return found("127.0.0.1", "127.0.0.1")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    asking = [asyncio.create_task(addresses_of("db.test", 5432, loop)) for _ in range(10)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await addresses_of("db.test", 5432, loop)
    assert calls == 1
    monkeypatch.setattr(names, "_SHARED_FOR", 0.0)
    assert await addresses_of("db.test", 5432, loop) == ["127.0.0.1"]
    assert not any(task.done() for task in asking)
    hold.set()
    assert await asyncio.gather(*asking) == [["127.0.0.1"]] * 10
    assert not names._lookups


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_not_looked_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert await addresses_of(host, 5432, asyncio.get_running_loop()) == [host]
