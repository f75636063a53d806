from __future__ import annotations

import asyncio

import pytest

from support.proxy import Proxy


@pytest.fixture
async def echo():
    async def answer(reader, writer):
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()
    server.close()


@pytest.fixture
async def proxy(echo):
    async with Proxy(*echo) as proxy:
        yield proxy


async def test_it_forwards_both_ways_and_ends_in_order(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"hello")
    assert await reader.read(100) == b"hello"
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert proxy.accepted == 1


async def test_a_blackhole_swallows_until_it_is_healed(proxy):
    proxy.blackhole()
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    await proxy.wait_accepted(1)
    writer.write(b"hello")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await reader.read(100)
    proxy.heal()
    assert await reader.read(100) == b"hello"
    writer.close()


@pytest.mark.parametrize(("after", "seen"), [(0, b""), (3, b"hel")])
async def test_a_reset_comes_after_so_many_bytes_of_an_answer(proxy, after, seen):
    proxy.reset_after = after
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    received = b""
    writer.write(b"hello")
    with pytest.raises(ConnectionError):  # noqa: PT012
        while data := await reader.read(100):
            received += data
    assert seen.startswith(received)  # a reset may overtake what was sent before it
    writer.close()


async def test_cut_resets_what_is_open_and_refuse_what_comes(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    await proxy.wait_accepted(1)
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)
    assert await proxy.cut() == 1
    with pytest.raises(ConnectionResetError):
        await reader.read(100)
    writer.close()
    await proxy.accept()
    _, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.close()


async def test_a_delay_holds_back_each_chunk(proxy):
    proxy.delay = 0.02
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    began = asyncio.get_running_loop().time()
    writer.write(b"hello")
    assert await reader.read(100) == b"hello"
    assert asyncio.get_running_loop().time() - began >= 0.038
    writer.close()


def test_it_takes_the_place_of_the_server_in_a_dsn():
    proxy = Proxy("x", 1)
    proxy.port = 7
    assert proxy.dsn_of("postgresql://u@x:1/db?sslmode=disable") == "postgresql://u@127.0.0.1:7/db?sslmode=disable"
