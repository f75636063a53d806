"""A login that does not derive its SCRAM keys anew: asyncpg's connect, with the password proved here.

asyncpg 0.32 runs PBKDF2 on the event loop for every connection, half of a connect's CPU, although the keys depend on
nothing but password, salt and iterations. Here a small protocol (`handshake`) stands between the transport and
asyncpg's own until the server has said yes. It gets there through the `loop=` that asyncpg's connect takes, and patches
nothing. asyncpg itself is given a placeholder, so that no password can be found in a connection.

It stands apart because it alone knows asyncpg's insides, and because everything works without it: whatever is not as
expected goes to plain asyncpg.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from asyncpg.protocol import Protocol as AsyncpgProtocol

from ..credentials import Secret
from ..errors import without_frames
from .handshake import Claim, Handshake
from .keys import KeyCache
from .self_test import run_self_test

logger = logging.getLogger("aiopqr")

_PLACEHOLDER = "aiopqr answers for asyncpg"
_works: bool | None = None  # whether asyncpg is as expected: tried at the first login of the process


async def login(
    connect: Callable[..., Awaitable[Any]],
    *args: Any,
    user: str,
    password: Secret,
    cache: KeyCache | None,
    loop: asyncio.AbstractEventLoop | None = None,
    ip: str | None = None,
    **kwargs: Any,
) -> Any:
    """Connect as `connect(*args, user=user, password=..., loop=..., **kwargs)` does, and raise what it raises.

    With a `cache`, and when `connect` is `asyncpg.connect`, the password is proved here and the connection never has
    it. A server that asks for more than `scram.MAX_ITERATIONS`, or skips its own proof, is then refused with an
    `asyncpg.InterfaceError`. Any other `connect` is called with a callable `password`, which works during the call.
    `ip` is the address to connect to, of several that the host's name has; the name is what its certificate must hold.

    Cancellation closes what was opened; a derivation that runs is finished in its thread and kept for the next login.
    """
    loop = loop or asyncio.get_running_loop()
    if cache is None or connect is not asyncpg.connect:
        return await _plain(connect, *args, user=user, password=password, loop=loop, **kwargs)
    known = dict(zip(("dsn",), args, strict=False), user=user, password=_PLACEHOLDER, **kwargs)
    context = await cache.contexts.shared(known, loop)
    if context is not None:
        kwargs["ssl"] = context
    try:
        if _suits(password) and await _asyncpg_works():
            try:
                answers: dict[str, Any] = {"user": user, "password": password, "cache": cache, "loop": loop, "ip": ip}
                return await _answered(connect, *args, **answers, **kwargs)
            except _NotAsked:
                pass
        return await _plain(connect, *args, user=user, password=password, loop=loop, **kwargs)
    except ssl.SSLError:
        cache.contexts.forget()
        raise


async def _plain(connect: Callable[..., Awaitable[Any]], *args: Any, password: Secret, **kwargs: Any) -> Any:
    lent = _Lent(password)
    try:
        return await connect(*args, password=lent, **kwargs)
    except BaseException as exc:
        without_frames(exc)  # a cancellation's too: an acquire's timeout has it as its cause, with the driver's locals
        raise
    finally:
        lent.take_back()


class _NotAsked(Exception):
    """asyncpg was refused with the placeholder, since the handshake never got in between."""


async def _answered(
    connect: Callable[..., Awaitable[Any]],
    *args: Any,
    user: str,
    password: Secret,
    cache: KeyCache,
    loop: asyncio.AbstractEventLoop,
    ip: str | None = None,
    **kwargs: Any,
) -> Any:
    claim = Claim(user, password, lambda secret, challenge: cache.keys(secret, challenge, loop))
    try:
        con = await connect(*args, user=user, password=_PLACEHOLDER, loop=_LoginLoop(loop, claim, ip), **kwargs)
    except Exception as exc:
        if claim.failure is not None:
            raise claim.failure from None
        if isinstance(exc, asyncpg.PostgresError) and not claim.handled:
            raise _NotAsked from None
        raise
    finally:
        claim.drop()
    try:
        _return_to(loop, con)
    except AttributeError:  # only ever in the self-test
        con.terminate()
        raise
    return con


def _suits(password: Secret) -> bool:
    # asyncpg and libpq differ on what SASLprep makes of some non-ASCII passwords, and so may Python's Unicode tables
    # and the server's. Whether a login succeeds must not depend on this option, so asyncpg prepares those itself.
    return password.reveal().isascii()


async def _asyncpg_works() -> bool:
    global _works
    if _works is None:
        try:
            await run_self_test(_answered)
        except Exception as exc:
            _works = False
            logger.warning(
                "asyncpg %s is not as expected (%r): each login derives its SCRAM keys anew", asyncpg.__version__, exc
            )
        else:
            _works = True
    return _works


class _Lent:
    """A password for one login. asyncpg keeps a callable password in the connection, so this one forgets.

    It is called once for each host.
    """

    __slots__ = ("_password",)

    def __init__(self, password: Secret) -> None:
        self._password: Secret | None = password

    def __call__(self) -> str:
        if self._password is None:
            raise asyncpg.InterfaceError("this password was lent for one login, which is over")
        return self._password.reveal()

    def take_back(self) -> None:
        self._password = None


# All that is assumed of asyncpg's insides stands from here on, and is tried by the self-test.


def _return_to(loop: asyncio.AbstractEventLoop, con: Any) -> None:
    # asyncio.current_task(view) is None: left here, the view would let every query timeout leave a task behind.
    # asyncpg's protocol keeps the view and offers no way to replace it, but asks it only for the real loop's methods.
    con._loop = loop
    con._stmt_cache._loop = loop


class _LoginLoop:
    """The event loop as asyncpg sees it during one login: a handshake stands before each of its protocols."""

    def __init__(self, loop: asyncio.AbstractEventLoop, claim: Claim, ip: str | None) -> None:
        self._loop = loop
        self._claim = claim
        self._ip = ip
        self._upgrading: asyncio.Transport | None = None
        self.call_later, self.time = loop.call_later, loop.time  # what a query's timeout costs stays the same

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    @property
    def create_future(self) -> Callable[[], asyncio.Future[Any]]:
        # After an SSLRequest asyncpg makes its protocol, which takes this method, and gives it the transport in the
        # same turn of the loop. On the next turn the handshake gets in between; until then nothing may be read, and
        # that must be said: uvloop polls before it runs what was called soon.
        if self._upgrading is not None and not self._upgrading.is_closing():
            self._upgrading.pause_reading()
            self._loop.call_soon(self._step_in, self._upgrading)
        return self._loop.create_future

    async def create_connection(self, factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        if self._ip is not None and args:
            if kwargs.get("ssl"):
                kwargs.setdefault("server_hostname", args[0])
            args = (self._ip, *args[1:])
        return await self._connect(self._loop.create_connection, factory, *args, **kwargs)

    async def create_unix_connection(self, factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        return await self._connect(self._loop.create_unix_connection, factory, *args, **kwargs)

    async def start_tls(self, *args: Any, **kwargs: Any) -> Any:
        self._upgrading = await self._loop.start_tls(*args, **kwargs)
        return self._upgrading

    async def _connect(
        self, create: Callable[..., Awaitable[Any]], factory: Callable[[], Any], *args: Any, **kwargs: Any
    ) -> Any:
        self._upgrading = None

        def build() -> Any:
            protocol = factory()
            return Handshake(self._claim, protocol) if isinstance(protocol, AsyncpgProtocol) else protocol

        transport, protocol = await create(build, *args, **kwargs)
        if isinstance(protocol, Handshake):
            return transport, protocol.inner
        self._upgrading = transport
        return transport, protocol

    def _step_in(self, transport: asyncio.Transport) -> None:
        self._upgrading = None
        protocol = transport.get_protocol()
        if isinstance(protocol, AsyncpgProtocol) and self._claim.password is not None:
            transport.set_protocol(Handshake(self._claim, protocol, transport))
        if not transport.is_closing():
            transport.resume_reading()
