"""A login without a network: asyncpg against a tiny server in memory.

It runs in production, once per process, before the first login that relies on asyncpg's internals, and checks in a
fraction of a millisecond whether they are as expected. It calls a function of asyncpg that monitoring agents do not
wrap, so that it does not show up in traces.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from asyncpg import connect_utils

from ..credentials import Secret
from .handshake import Claim
from .scram import derive

_SALT = b"self-test"
_KEYS = derive("self-test", _SALT, 1)


class _Unexpected(Exception):
    """asyncpg did not behave as the login needs it to."""


async def run_self_test(answered: Callable[..., Awaitable[Any]], view: Callable[..., Any]) -> None:
    """Log in without TLS and with STARTTLS. Raises if anything is not as expected."""
    for context in (None, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
        stage = _Stage(asyncio.get_running_loop())
        claim = Claim("self-test", Secret("self-test"), lambda password, challenge: _KEYS)
        con = await answered(_connect, tls=context, claim=claim, view=view(stage, claim))
        try:
            if not stage.transport.authenticated:
                raise _Unexpected("it logged in without the handshake")
            if stage.transport.get_protocol() is not con._protocol:
                raise _Unexpected("its protocol did not get the transport")
            if con._loop is not stage or con._stmt_cache._loop is not stage:
                raise _Unexpected("the connection keeps another event loop")
        finally:
            con.terminate()


async def _connect(*, loop: Any, password: str, tls: ssl.SSLContext | None) -> Any:
    """What ``asyncpg.connect`` does for one address, without its parsing and the functions that agents wrap."""
    mode = connect_utils.SSLMode.require if tls else connect_utils.SSLMode.disable
    params = connect_utils._ConnectionParameters(
        user="self-test",
        password=password,
        database="self-test",
        ssl=tls,
        sslmode=mode,
        ssl_negotiation=connect_utils.SSLNegotiation.postgres,
        server_settings=None,
        target_session_attrs=connect_utils.SessionAttribute.any,
        krbsrvname=None,
        gsslib="gssapi",
    )
    config = connect_utils._ClientConfiguration(
        command_timeout=None,
        statement_cache_size=0,
        max_cached_statement_lifetime=0,
        max_cacheable_statement_size=0,
    )
    connect_one = getattr(connect_utils, "__connect_addr")
    async with asyncio.timeout(5.0):
        return await connect_one(
            params, False, ("127.0.0.1", 1), loop, config, asyncpg.Connection, asyncpg.Record, params
        )


class _Stage:
    """An event loop on which all connections lead to the server below."""

    transport: _Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        protocol = factory()
        self.transport = _Transport(self._loop, protocol)
        protocol.connection_made(self.transport)
        return self.transport, protocol

    async def start_tls(self, transport: _Transport, *args: Any, **kwargs: Any) -> _Transport:
        return transport


class _Transport(asyncio.Transport):
    """A transport whose other end is a server that accepts any client that completes SCRAM."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self.authenticated = False
        self._script = self._serve()
        next(self._script)

    def _serve(self) -> Any:
        sent = yield
        if sent == b"\x00\x00\x00\x08\x04\xd2\x16\x2f":  # SSLRequest
            sent = yield b"S"
        client_first = (yield _message(b"R", b"\x00\x00\x00\x0aSCRAM-SHA-256\0\0")).rpartition(b"n,,")[2]
        nonce = client_first.rpartition(b"r=")[2]
        server_first = b"r=%b+,s=%b,i=1" % (nonce, b64encode(_SALT))
        client_final = (yield _message(b"R", b"\x00\x00\x00\x0b" + server_first))[5:]
        without_proof, _, proof = client_final.rpartition(b",p=")
        auth = b",".join((client_first, server_first, without_proof))
        signature = hmac.digest(_KEYS.stored, auth, "sha256")
        if bytes(a ^ b for a, b in zip(_KEYS.client, signature, strict=True)) != b64decode(proof):
            yield _message(b"E", b"SFATAL\0C28P01\0Mthe placeholder was sent\0\0")
        self.authenticated = True
        yield b"".join(
            (
                _message(b"R", b"\x00\x00\x00\x0cv=" + b64encode(hmac.digest(_KEYS.server, auth, "sha256"))),
                _message(b"R", bytes(4)),
                _message(b"S", b"server_version\x0018.0\0"),
                _message(b"Z", b"I"),
            )
        )
        yield b""  # Terminate

    def write(self, data: Any) -> None:
        reply = self._script.send(bytes(data))
        if reply:
            self._loop.call_soon(lambda: self._protocol.data_received(reply))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[no-any-return]

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body
