"""Servers that lie, stall, split and repeat themselves: no login succeeds that should not, and none hangs the loop."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import socket
import ssl
import threading
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import trustme
import uvloop

from aiopqr._login import keys, scram
from aiopqr._login.asyncpg_login import login
from aiopqr._login.keys import KeyCache
from aiopqr.credentials import Credential, Secret

PASSWORD = "correct horse battery"
SALT = b"0123456789abcdef"
READY = (
    b"R\x00\x00\x00\x08\x00\x00\x00\x00"  # AuthenticationOk
    b"S\x00\x00\x00\x18server_version\x0016.1\x00"
    b"K\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x02"
    b"Z\x00\x00\x00\x05I"
)


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def request(code: int, body: bytes = b"") -> bytes:
    return message(b"R", code.to_bytes(4, "big") + body)


SASL = request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")
ERROR = message(b"E", b"SFATAL\0VFATAL\0C28P01\0Mno\0Rauth_failed\0\0")


class Peer:
    """The server's end of one connection, with the steps of an honest server, from which tests depart."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(messages))

    async def startup(self) -> None:
        await self.reader.readexactly(int.from_bytes(await self.reader.readexactly(4), "big") - 4)

    async def read(self) -> bytes:
        kind = await self.reader.readexactly(1)
        assert kind == b"p"
        return await self.reader.readexactly(int.from_bytes(await self.reader.readexactly(4), "big") - 4)

    async def client_first(self, *, ask: bool = True) -> None:
        await self.startup()
        if ask:
            self.send(SASL)
        body = await self.read()
        self.mechanism, _, rest = body.partition(b"\0")
        assert self.mechanism in (b"SCRAM-SHA-256", b"SCRAM-SHA-256-PLUS")
        assert int.from_bytes(rest[:4], "big") == len(rest) - 4
        self.flag, _, self.bare = rest[4:].partition(b",,")
        assert self.flag == (b"n" if self.mechanism == b"SCRAM-SHA-256" else b"p=tls-server-end-point")
        self.nonce = self.bare.partition(b"r=")[2]

    def server_first(self, iterations: object = 4096, nonce: bytes | None = None, salt: bytes = SALT) -> bytes:
        continued = self.nonce + b"server" if nonce is None else nonce
        self.challenge = b"r=%s,s=%s,i=%s" % (continued, b64encode(salt), str(iterations).encode())
        self.keys = (salt, iterations)
        return request(11, self.challenge)

    async def client_final(self) -> bytes:
        """The server's signature over the exchange; checks the client's proof."""
        self.without_proof, _, proof = (await self.read()).rpartition(b",p=")
        salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), self.keys[0], int(str(self.keys[1])))
        auth = b",".join((self.bare, self.challenge, self.without_proof))
        client = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client).digest(), auth, "sha256")
        assert bytes(a ^ b for a, b in zip(client, signature, strict=True)) == b64decode(proof)
        return hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), auth, "sha256")

    async def honest(self, iterations: int = 4096) -> None:
        await self.client_first()
        self.send(self.server_first(iterations))
        signature = await self.client_final()
        self.send(request(12, b"v=" + b64encode(signature)), READY)


Behaviour = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(
    behaviour: Behaviour, *, hang_up: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[dict[str, Any]]:
    """A server that behaves this way, and then waits for the client to hang up, unless it hangs up itself."""
    failures: list[BaseException] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaviour(Peer(reader, writer))
            if not hang_up:
                while await reader.read(1000):
                    pass
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        except Exception as exc:
            failures.append(exc)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield {
            "host": "127.0.0.1", "port": server.sockets[0].getsockname()[1], "database": "d", "ssl": False,
            "timeout": 20.0,
        }  # fmt: skip
    finally:
        server.close()
        await server.wait_closed()
    if failures:
        raise failures[0]


async def enter(address: dict[str, Any], cache: KeyCache | None = None) -> Any:
    cache = KeyCache() if cache is None else cache
    return await login(asyncpg.connect, **address, user="someone", password=Secret(PASSWORD), cache=cache)


async def refusal(behaviour: Behaviour, *, hang_up: bool = False) -> Exception:
    async with serving(behaviour, hang_up=hang_up) as address:
        with pytest.raises(Exception) as caught:
            (await enter(address)).terminate()
    assert not isinstance(caught.value, TimeoutError)
    assert PASSWORD not in str(caught.value)
    assert asyncio.all_tasks() == {asyncio.current_task()} or await settled()
    return caught.value


async def settled() -> bool:
    """Wait until the server's handlers have seen the end of their connections."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)
    return all(task.done() for task in others)


@pytest.fixture(scope="module")
def authority() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context, and a client's that trusts it."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    return theirs, ours


async def test_an_honest_server_is_entered() -> None:
    async with serving(Peer.honest) as address:
        (await enter(address)).terminate()


async def test_tls_without_asking_first_is_entered(authority: Any) -> None:
    theirs, ours = authority
    cache = KeyCache()
    async with serving(Peer.honest, tls=theirs) as address:
        con = await enter({**address, "ssl": ours, "direct_tls": True}, cache)
        assert con._transport.get_extra_info("ssl_object") is not None
        con.terminate()
        assert await settled()
    assert len(cache) == 1


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_server_too_quick_after_starttls_never_speaks_to_asyncpg(runner: Any, authority: Any) -> None:
    """It asks before the client has sent anything. If asyncpg read that, it would answer with the placeholder."""
    theirs, ours = authority

    async def eager(peer: Peer) -> None:
        await peer.startup()  # SSLRequest
        peer.send(b"S")
        await peer.writer.drain()
        await peer.writer.start_tls(theirs)
        peer.send(SASL)
        await peer.client_first(ask=False)
        peer.send(peer.server_first())
        peer.send(request(12, b"v=" + b64encode(await peer.client_final())), READY)

    async def main() -> None:
        cache = KeyCache()
        async with serving(eager) as address:
            for _ in range(20):
                (await enter({**address, "ssl": ours}, cache)).terminate()
            assert await settled()
        assert len(cache) == 1

    runner(main())


async def test_messages_may_come_byte_by_byte() -> None:
    async def trickle(peer: Peer) -> None:
        send = peer.send

        def slowly(*messages: bytes) -> None:
            parts.extend(bytes([byte]) for byte in b"".join(messages))

        parts: list[bytes] = []
        peer.send = slowly  # type: ignore[method-assign]

        async def flush() -> None:
            while parts:
                send(parts.pop(0))
                await peer.writer.drain()
                await asyncio.sleep(0)

        read = peer.read

        async def flushing() -> bytes:
            await flush()
            return await read()

        peer.read = flushing  # type: ignore[method-assign]
        await peer.honest()
        await flush()

    async with serving(trickle) as address:
        (await enter(address)).terminate()


async def test_notices_and_version_negotiation_are_no_part_of_the_exchange() -> None:
    async def talkative(peer: Peer) -> None:
        notice = message(b"N", b"SNOTICE\0Mhello\0\0")
        peer.send(message(b"v", bytes(8)), notice)
        await peer.client_first()
        peer.send(notice, peer.server_first(), notice)
        peer.send(notice, request(12, b"v=" + b64encode(await peer.client_final())), notice, READY)

    async with serving(talkative) as address:
        (await enter(address)).terminate()


async def test_a_warning_that_the_password_will_expire_is_no_error() -> None:
    """What Postgres 19 sends to a client that has logged in, some days before VALID UNTIL."""

    async def warning(peer: Peer) -> None:
        await peer.client_first()
        peer.send(peer.server_first())
        proof = request(12, b"v=" + b64encode(await peer.client_final()))
        warning = b"SWARNING\0VWARNING\0C01000\0Mrole password will expire soon\0DThe password expires in 3 days.\0\0"
        peer.send(proof, READY[:9], message(b"N", warning), READY[9:])

    async with serving(warning) as address:
        (await enter(address)).terminate()


async def wrong_signature(peer: Peer) -> None:
    await peer.client_first()
    peer.send(peer.server_first())
    await peer.client_final()
    peer.send(request(12, b"v=" + b64encode(bytes(32))), READY)


async def short_signature(peer: Peer) -> None:
    await peer.client_first()
    peer.send(peer.server_first())
    peer.send(request(12, b"v=" + b64encode((await peer.client_final())[:16])), READY)


async def no_signature(peer: Peer) -> None:
    await peer.client_first()
    peer.send(peer.server_first())
    await peer.client_final()
    peer.send(READY)


async def no_exchange_after_asking_for_one(peer: Peer) -> None:
    await peer.client_first()
    peer.send(READY)


@pytest.mark.parametrize(
    "behaviour", [wrong_signature, short_signature, no_signature, no_exchange_after_asking_for_one]
)
async def test_a_server_that_does_not_prove_itself_is_refused_as_asyncpg_refuses_it(behaviour: Behaviour) -> None:
    error = await refusal(behaviour)
    assert type(error) is asyncpg.InterfaceError
    assert "could not verify server signature" in str(error)


async def test_asyncpg_itself_refuses_a_wrong_signature_with_the_same_words() -> None:
    async with serving(wrong_signature) as address:
        with pytest.raises(asyncpg.InterfaceError) as theirs:
            await asyncpg.connect(**address, user="someone", password=PASSWORD)
    assert str(await refusal(wrong_signature)) == str(theirs.value)


@pytest.mark.parametrize("iterations", [scram.MAX_ITERATIONS + 1, 10_000_000, 2**31 - 1])
@pytest.mark.parametrize("password", [PASSWORD, "pässwörd"])
async def test_ten_million_iterations_are_refused_before_any_is_computed(
    iterations: int, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PASSWORD", password)
    monkeypatch.setattr(keys, "derive", None)  # would raise TypeError

    async def greedy(peer: Peer) -> None:
        await peer.client_first()
        peer.send(peer.server_first(iterations))

    error = await refusal(greedy)
    assert type(error) is asyncpg.InterfaceError
    assert str(iterations) in str(error)
    assert str(scram.MAX_ITERATIONS) in str(error)


async def test_one_iteration_is_what_a_server_may_be_set_to() -> None:
    async def frugal(peer: Peer) -> None:
        await peer.honest(iterations=1)

    async with serving(frugal) as address:
        (await enter(address)).terminate()


@pytest.mark.parametrize("iterations", [0, -1, "", "x", "1.5", 10**40])
async def test_an_impossible_iteration_count_is_refused(iterations: object) -> None:
    async def odd(peer: Peer) -> None:
        await peer.client_first()
        peer.send(peer.server_first(iterations))

    assert type(await refusal(odd)) is asyncpg.InternalClientError


@pytest.mark.parametrize("nonce", [b"", b"server", b"replayed-from-another-login"])
async def test_a_nonce_that_does_not_continue_ours_is_refused(nonce: bytes) -> None:
    async def replay(peer: Peer) -> None:
        await peer.client_first()
        peer.send(peer.server_first(nonce=nonce))

    error = await refusal(replay)
    assert type(error) is asyncpg.InternalClientError


async def test_an_exchange_recorded_at_another_login_is_refused() -> None:
    recorded: list[bytes] = []

    async def record_then_replay(peer: Peer) -> None:
        await peer.client_first()
        if recorded:
            peer.send(*recorded)
            return
        first = peer.server_first()
        peer.send(first)
        final = request(12, b"v=" + b64encode(await peer.client_final()))
        recorded.extend((first, final, READY))
        peer.send(final, READY)

    cache = KeyCache()
    async with serving(record_then_replay) as address:
        (await enter(address, cache)).terminate()
        with pytest.raises(asyncpg.InternalClientError, match="nonce"):
            await enter(address, cache)


def at_the_step(step: int, *messages: bytes) -> Behaviour:
    """Honest up to a step (0: before SASL, 1: before the challenge, 2: before the signature, 3: after it)."""

    async def behave(peer: Peer) -> None:
        if step == 0:
            await peer.startup()
        else:
            await peer.client_first()
        if step >= 2:
            peer.send(peer.server_first())
            signature = await peer.client_final()
        if step >= 3:
            peer.send(request(12, b"v=" + b64encode(signature)))
        peer.send(*messages)

    return behave


CHALLENGE = request(11, b"r=x,s=" + b64encode(SALT) + b",i=1")
OUT_OF_ORDER = {
    "final first": (1, (request(12, b"v=" + b64encode(bytes(32))),)),
    "SASL twice": (1, (SASL,)),
    "cleartext inside": (1, (request(3),)),
    "md5 inside": (2, (request(5, b"salt"),)),
    "GSS inside": (2, (request(7),)),
    "second challenge": (2, (CHALLENGE,)),
    "third challenge": (3, (CHALLENGE,)),
    "signature twice": (3, (request(12, b"v=" + b64encode(bytes(32))),)),
    "SASL again": (3, (SASL,)),
    "ready without ok": (1, (message(b"Z", b"I"),)),
    "ready before ok": (3, (message(b"Z", b"I"),)),
    "status before ok": (2, (message(b"S", b"a\0b\0"),)),
    "nonsense": (1, (message(b"!", b""),)),
    "a request without a code": (1, (message(b"R", b""),)),
    "length zero": (1, (b"R\x00\x00\x00\x00",)),
    "length three": (1, (b"R\x00\x00\x00\x03",)),
    "negative length": (1, (b"R\xff\xff\xff\xff",)),
    "a gigabyte announced": (0, (b"R\x40\x00\x00\x00",)),
    "unknown request": (2, (request(99),)),
    "mandatory extension": (1, (request(11, b"m=x,r=y,s=AAAA,i=1"),)),
    "server error": (2, (request(12, b"e=other-error"),)),
    "empty signature": (2, (request(12, b""),)),
    "trailing rubbish": (2, (request(12, b"v=AAAA,rubbish"),)),
}


@pytest.mark.parametrize("name", OUT_OF_ORDER)
async def test_what_is_out_of_order_or_malformed_is_refused(name: str) -> None:
    step, messages = OUT_OF_ORDER[name]
    error = await refusal(at_the_step(step, *messages, READY))
    assert isinstance(error, asyncpg.InternalClientError), error


@pytest.mark.parametrize("step", [0, 1, 2, 3])
async def test_an_error_at_any_step_is_the_servers_own(step: int) -> None:
    error = await refusal(at_the_step(step, ERROR), hang_up=True)
    assert type(error) is asyncpg.InvalidPasswordError
    assert error.server_source_function == "auth_failed"  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("rest", [b"", b"R\x00\x00"], ids=["between messages", "inside one"])
async def test_an_end_at_any_step_is_asyncpgs_lost_connection(step: int, rest: bytes) -> None:
    error = await refusal(at_the_step(step, rest), hang_up=True)
    assert type(error) is asyncpg.ConnectionDoesNotExistError


async def test_mechanisms_that_are_not_ours_are_asyncpgs_to_refuse() -> None:
    error = await refusal(at_the_step(0, request(10, b"OAUTHBEARER\0\0")))
    assert type(error) is asyncpg.InterfaceError
    assert "unsupported SASL" in str(error)


ENDLESS = {
    "two gigabytes announced": b"E\x7f\xff\xff\xff" + bytes(200_000),
    "more than any honest error": b"E\x00\x01\x00\x00" + bytes(200_000),
    "no length, as before protocol 3": b"Ecould not fork new process for connection: Cannot allocate memory\n\0",
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_an_error_of_impossible_length_is_a_lost_connection(name: str) -> None:
    error = await refusal(at_the_step(0, ENDLESS[name]))
    assert type(error) is asyncpg.ConnectionDoesNotExistError


@pytest.mark.parametrize("kind", [b"S", b"K", b"N"])
async def test_a_message_of_two_gigabytes_is_refused_until_the_login_is_over(kind: bytes) -> None:
    for accepted in (b"", READY[:9]):
        error = await refusal(at_the_step(0, accepted, kind + b"\x7f\xff\xff\xff"))
        assert type(error) is asyncpg.InternalClientError


async def test_a_server_that_is_ready_without_having_let_anybody_in_is_refused() -> None:
    assert type(await refusal(at_the_step(0, READY[9:]))) is asyncpg.InternalClientError


async def test_a_server_that_asks_again_after_letting_in_is_refused() -> None:
    assert type(await refusal(at_the_step(0, READY[:9], request(3), READY[9:]))) is asyncpg.InternalClientError


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_no_refusal_through_tls_is_lost(runner: Any, authority: Any) -> None:
    """Even if the server hangs up immediately. uvloop drops what it has buffered while reading is paused."""
    theirs, ours = authority

    async def full(peer: Peer) -> None:
        await peer.startup()  # SSLRequest
        peer.send(b"S")
        await peer.writer.drain()
        await peer.writer.start_tls(theirs)
        await peer.startup()
        peer.send(message(b"E", b"SFATAL\0VFATAL\0C53300\0Mtoo many clients\0\0"))

    async def main() -> None:
        async with serving(full, hang_up=True) as address:
            for _ in range(100):
                with pytest.raises(asyncpg.TooManyConnectionsError):
                    await enter({**address, "ssl": ours})
            assert await settled()

    runner(main())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_login_through_tls_that_is_given_up_leaves_no_socket(runner: Any, authority: Any) -> None:
    """Even if the server does not answer the end of TLS, for which asyncio waits 30 s."""
    theirs, ours = authority
    ended = threading.Event()

    def freeze(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        plain.recv(8)  # SSLRequest
        plain.sendall(b"S")
        with theirs.wrap_socket(plain, server_side=True) as tls:
            tls.recv(1000)
            with socket.socket(fileno=os.dup(tls.fileno())) as below:
                while below.recv(1000):
                    pass
        ended.set()

    async def main() -> None:
        address = {"host": "127.0.0.1", "port": listener.getsockname()[1], "database": "d", "ssl": ours}
        with pytest.raises(TimeoutError):
            await enter({**address, "timeout": 0.5})
        assert await asyncio.to_thread(ended.wait, 10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=freeze, args=(listener,))
        server.start()
        runner(main())
        server.join()


class Gate:
    """A derivation that finishes when the test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = asyncio.get_running_loop()
        self.started, self.release = asyncio.Event(), threading.Event()
        self.count = 0
        derive = scram.derive

        def held(*args: Any) -> scram.Keys:
            self.count += 1
            self.loop.call_soon_threadsafe(self.started.set)
            assert self.release.wait(20)
            return derive(*args)

        monkeypatch.setattr(keys, "derive", held)


async def test_a_derivation_never_blocks_the_loop_and_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, cache = Gate(monkeypatch), KeyCache()
    async with serving(Peer.honest) as address:
        logins = [asyncio.create_task(enter(address, cache)) for _ in range(3)]
        await gate.started.wait()  # this task continues while the thread derives
        assert not any(task.done() for task in logins)
        gate.release.set()
        for con in await asyncio.gather(*logins):
            con.terminate()
    assert gate.count == 1


async def test_a_login_cancelled_while_deriving_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, cache = Gate(monkeypatch), KeyCache()
    gone = asyncio.Event()

    async def watched(peer: Peer) -> None:
        await peer.client_first()
        peer.send(peer.server_first())
        assert await peer.reader.read() == b""  # no proof, and the end
        gone.set()

    async with serving(watched) as address:
        task = asyncio.create_task(enter(address, cache))
        await gate.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 5)
        gate.release.set()
    async with serving(Peer.honest) as address:
        (await enter(address, cache)).terminate()
    assert gate.count == 1  # the next login used what the cancelled one began


async def test_an_error_while_deriving_ends_the_login_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def impatient(peer: Peer) -> None:
        await peer.client_first()
        peer.send(peer.server_first())
        await gate.started.wait()
        peer.send(ERROR)

    try:
        assert type(await refusal(impatient)) is asyncpg.InvalidPasswordError
    finally:
        gate.release.set()


async def test_keys_forgotten_while_being_derived_stay_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, cache = Gate(monkeypatch), KeyCache()
    async with serving(Peer.honest) as address:
        task = asyncio.create_task(enter(address, cache))
        await gate.started.wait()
        cache.keep_only([Credential("someone", "another")])
        gate.release.set()
        (await task).terminate()
    assert len(cache) == 0
