"""What aiopqr, libpq and asyncpg give to a server that is not theirs.

    python tests/login/who_sends_what.py        # prints the table of docs/security.md

Each row is a server that somebody runs in place of the real one, or between it and the client. All clients use
their default settings, except for the sslmode that the row names; `require_auth` and `channel_binding` are not given.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import trustme

from aiopqr._login import KeyCache, login, proved
from aiopqr._trust import Trust
from aiopqr.credentials import Secret

USER, PASSWORD = "app_odd", "correct horse battery"
PLUS = b"SCRAM-SHA-256-PLUS\0"
SSL_REQUEST = b"\x04\xd2\x16\x2f"
OK = b"R\x00\x00\x00\x08\x00\x00\x00\x00"
READY = OK + b"S\x00\x00\x00\x18server_version\x0016.1\x00" + b"K\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x02"
READY += b"Z\x00\x00\x00\x05I"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def request(code: int, body: bytes = b"") -> bytes:
    return message(b"R", code.to_bytes(4, "big") + body)


REFUSAL = message(b"E", b"SFATAL\0VFATAL\0C28P01\0Mno\0Rauth_failed\0\0")


class Impostor:
    """One connection to the impostor: reads what the client sends, and notes what it can do with it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: set[str]) -> None:
        self.reader, self.writer, self.got = reader, writer, got

    async def startup(self, tls: ssl.SSLContext | None) -> bytes:
        while True:
            body = await self.reader.readexactly(int.from_bytes(await self.reader.readexactly(4), "big") - 4)
            if body != SSL_REQUEST:
                return body
            self.writer.write(b"S" if tls else b"N")
            await self.writer.drain()
            if tls:
                await self.writer.start_tls(tls)

    def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(messages))

    async def read(self) -> bytes:
        assert await self.reader.readexactly(1) == b"p"
        return await self.reader.readexactly(int.from_bytes(await self.reader.readexactly(4), "big") - 4)

    async def scram_until_proof(self, iterations: int = 4096) -> None:
        self.send(request(10, b"SCRAM-SHA-256\0\0"))
        first = (await self.read()).partition(b"\0")[2][4:]
        nonce = first.rpartition(b"r=")[2]
        self.send(request(11, b"r=%bX,s=%b,i=%d" % (nonce, b64encode(b"0123456789abcdef"), iterations)))
        await self.read()


async def asks_for_plain_text(peer: Impostor) -> None:
    peer.send(request(3))
    if PASSWORD.encode() in await peer.read():
        peer.got.add("the password")
    peer.send(REFUSAL)


async def asks_for_md5(peer: Impostor) -> None:
    peer.send(request(5, b"salt"))
    if (await peer.read()).startswith(b"md5"):
        peer.got.add("an MD5 hash to crack")
    peer.send(REFUSAL)


async def asks_for_nothing(peer: Impostor) -> None:
    peer.send(READY)
    await peer.reader.read(1)  # the login succeeds, or the connection ends


async def skips_its_proof(peer: Impostor) -> None:
    await peer.scram_until_proof()
    peer.send(READY)
    await peer.reader.read(1)


async def makes_up_its_proof(peer: Impostor) -> None:
    await peer.scram_until_proof()
    peer.send(request(12, b"v=" + b64encode(bytes(32))), READY)
    await peer.reader.read(1)


async def replays(peer: Impostor) -> None:
    peer.send(request(10, b"SCRAM-SHA-256\0\0"))
    await peer.read()
    peer.send(request(11, b"r=recorded-at-another-login,s=" + b64encode(b"0123456789abcdef") + b",i=4096"))
    await peer.read()
    peer.got.add("a proof for its own nonce")


async def lets_compute(peer: Impostor) -> None:
    await peer.scram_until_proof(5_000_000)
    peer.got.add("seconds of the client's CPU")


Behaviour = Callable[[Impostor], Awaitable[None]]
Client = Callable[..., Awaitable[bool]]


@asynccontextmanager
async def impostor(behave: Behaviour, tls: ssl.SSLContext | None, got: set[str]) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Impostor(reader, writer, got)
        try:
            await peer.startup(tls)
            await behave(peer)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async with serving(handle) as port:
        yield port


@asynccontextmanager
async def serving(handle: Callable[..., Awaitable[None]]) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[Any]] = set()

    async def tracked(*args: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await handle(*args)

    server = await asyncio.start_server(tracked, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if tasks:
            await asyncio.wait(tasks, timeout=5)


@asynccontextmanager
async def in_the_middle(true_port: int, tls: ssl.SSLContext, got: set[str], trick: str) -> AsyncIterator[int]:
    """Ends the client's TLS with its own certificate, and passes everything on to the real server through TLS.

    The trick is what it does with the real server's offer to use SCRAM-SHA-256-PLUS.
    """
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            startup = await Impostor(reader, writer, got).startup(tls)
            theirs, true = await asyncio.open_connection("127.0.0.1", true_port)
            true.write(b"\x00\x00\x00\x08" + SSL_REQUEST)
            assert await theirs.readexactly(1) == b"S"
            await true.start_tls(unchecked)
            true.write((len(startup) + 4).to_bytes(4, "big") + startup)
            offer = await theirs.readexactly(5)
            offer += await theirs.readexactly(int.from_bytes(offer[1:], "big") - 4)
            plain = message(b"R", offer[5:].replace(PLUS, b""))
            writer.write(plain if trick == STRIPS else offer)
            if trick == OFFERS_AGAIN:
                chosen = await Impostor(reader, writer, got).read()
                if chosen.startswith(PLUS):
                    writer.write(plain)
                else:
                    true.write(message(b"p", chosen))

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    if OK in data:
                        got.add("a session on the real server, logged in as the client")
                    sink.write(data)
                sink.close()

            await asyncio.gather(pump(reader, true), pump(theirs, writer), return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async with serving(handle) as port:
        yield port


# The clients: connect, and close the result. Each returns whether the login succeeded.


async def by_aiopqr(port: int, sslmode: str, **options: Any) -> bool:
    given = {"host": "127.0.0.1", "port": port, "database": "postgres", "ssl": sslmode, "timeout": 20.0}
    trust = Trust.parse(**options)
    con = await login(asyncpg.connect, **given, user=USER, password=Secret(PASSWORD), cache=KeyCache(), trust=trust)
    con.terminate()
    return True


async def by_libpq(port: int, sslmode: str, **options: Any) -> bool:
    import psycopg

    def connect() -> bool:
        given = {"host": "127.0.0.1", "port": port, "dbname": "postgres", "sslmode": sslmode, "connect_timeout": 20}
        psycopg.connect(user=USER, password=PASSWORD, **given, **options).close()  # type: ignore[arg-type]
        return True

    return await asyncio.to_thread(connect)


async def by_asyncpg(port: int, sslmode: str) -> bool:
    given = {"host": "127.0.0.1", "port": port, "database": "postgres", "ssl": sslmode, "timeout": 20.0}
    con = await asyncpg.connect(user=USER, password=PASSWORD, **given)  # type: ignore[arg-type]
    con.terminate()
    return True


CLIENTS: dict[str, Client] = {
    "aiopqr": by_aiopqr,
    "libpq": by_libpq,
    "asyncpg": by_asyncpg,
}
NOTHING, TRUSTED = "nothing", "the client's trust"
SERVERS: dict[str, Behaviour] = {
    "asks for the password as plain text": asks_for_plain_text,
    "asks for MD5": asks_for_md5,
    "lets the client in without asking for a password": asks_for_nothing,
    "skips its own proof in SCRAM": skips_its_proof,
    "makes up its proof": makes_up_its_proof,
    "replays an exchange that it recorded earlier": replays,
    "asks for five million iterations": lets_compute,
}
CHANNELS = {"plain TCP": "disable", "TLS, sslmode=require": "require"}
RELAYS, STRIPS = "relays SCRAM to the real server", "relays SCRAM to the real server and strips PLUS from the offer"
OFFERS_AGAIN = "relays SCRAM to the real server and, once the client has chosen PLUS, offers SCRAM without PLUS"
MIDDLE = (RELAYS, STRIPS, OFFERS_AGAIN)


async def outcome(client: Client, port: int, sslmode: str, got: set[str], **options: Any) -> str:
    try:
        if await client(port, sslmode, **options) and not any("real server" in item for item in got):
            got.add(TRUSTED)
    except Exception:
        pass
    return ", ".join(sorted(got)) or NOTHING


async def meets(client: Client, behave: Behaviour, channel: str, **options: Any) -> str:
    """What one of the impostors gets from a client."""
    proved._digests.clear()
    got: set[str] = set()
    sslmode = CHANNELS[channel]
    async with impostor(behave, own_certificate() if sslmode == "require" else None, got) as port:
        return await outcome(client, port, sslmode, got, **options)


async def meets_in_the_middle(client: Client, true_port: int, trick: str, **options: Any) -> str:
    """What somebody between the client and the real server gets, under sslmode=require."""
    got: set[str] = set()
    async with in_the_middle(true_port, own_certificate(), got, trick) as port:
        return await outcome(client, port, "require", got, **options)


def own_certificate() -> ssl.SSLContext:
    """A certificate that the impostor has made for itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


async def table(true_port: int) -> str:
    """The whole table, in Markdown. ``true_port``: a server with TLS where USER has PASSWORD."""
    lines = [f"| the impostor | transport | {' | '.join(f'gets from {name}' for name in CLIENTS)} |"]
    lines.append("|---" * (2 + len(CLIENTS)) + "|")
    for name, behave in SERVERS.items():
        for channel in CHANNELS:
            cells = [await meets(client, behave, channel) for client in CLIENTS.values()]
            lines.append(f"| {name} | {channel} | {' | '.join(cells)} |")
    for name in MIDDLE:
        cells = [await meets_in_the_middle(client, true_port, name) for client in CLIENTS.values()]
        lines.append(f"| {name} | TLS, sslmode=require | {' | '.join(cells)} |")
    return "\n".join(lines)


async def main() -> None:
    from aiopqr.testing import EmbeddedPostgres

    async with EmbeddedPostgres("system") as server:
        await server.enable_tls()
        await server.execute(f"create role {USER} login password '{PASSWORD}'")
        print(await table(server.port))
        import psycopg

        print(f"\nlibpq {psycopg.pq.version() // 10000}, asyncpg {asyncpg.__version__}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    asyncio.run(main())
