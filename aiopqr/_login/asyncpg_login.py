"""Logs in with asyncpg's connect, but we, not asyncpg, prove that we know the password.

asyncpg derives the SCRAM keys on the event loop for every connection, sends the password as plain text to any server
that asks for it, and does not support channel binding. Here a protocol of our own (`handshake`) sits between the
transport and asyncpg's protocol until the login is over. It gets there through the ``loop=`` argument of asyncpg's
connect; asyncpg is not patched. asyncpg itself gets a placeholder, so no password can be found in a connection.

At the first login of a process, a self-test checks whether asyncpg is as expected. If it is not, asyncpg logs in by
itself, and logins that must be stricter than asyncpg fail.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Generator, Mapping
from types import coroutine
from typing import Any

import asyncpg
from asyncpg.protocol.protocol import BaseProtocol as AsyncpgProtocol  # agents replace the name one package above

from .._reading import read_in_pieces
from .._trust import Trust
from ..credentials import Secret
from ..errors import ConfigurationError, without_frames
from .handshake import Claim, Handshake
from .keys import KeyCache
from .names import addresses_of
from .self_test import run_self_test

logger = logging.getLogger("aiopqr")

_PLACEHOLDER = "aiopqr answers for asyncpg"
OWN_CONNECT = "require_auth= and channel_binding= cannot be enforced with your own connect="
_works: bool | None = None  # whether asyncpg is as expected; None before the first login of the process


async def login(
    connect: Callable[..., Awaitable[Any]],
    *args: Any,
    user: str,
    password: Secret,
    cache: KeyCache | None = None,
    trust: Trust | None = None,
    asked: Callable[[str], None] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    ip: str | None = None,
    timeout: float | None = 60.0,
    **kwargs: Any,
) -> Any:
    """Connect as ``connect(*args, user=user, password=..., loop=..., timeout=..., **kwargs)`` does.

    If ``connect`` is asyncpg's own, the password is proved here, and the connection never holds it. A server that asks
    for anything that ``trust`` does not allow gets nothing, and :class:`UntrustedServer` is raised. A server that asks
    for more than ``scram.MAX_ITERATIONS``, or skips its own proof, is refused with an ``asyncpg.InterfaceError``.
    ``cache`` keeps keys and TLS contexts for the next login; without it, nothing is kept. ``asked`` is called with what
    the server asked for. ``ip`` chooses one of the host's addresses; the certificate is still checked against the
    host's name. ``timeout`` is in seconds and covers everything.

    Any other ``connect`` is called with a callable ``password``, which works only during the call. An explicit
    ``trust`` cannot be enforced there, so it raises :class:`ConfigurationError`.

    Cancelling the call closes what was opened. A key derivation that has begun still finishes in its thread, and the
    next login can use the result.
    """
    loop = loop or asyncio.get_running_loop()
    trust = trust or Trust()
    if connect not in (asyncpg.connect, asyncpg.connection.connect):
        if trust.explicit:
            raise ConfigurationError(OWN_CONNECT)
        return await _plain(connect, *args, user=user, password=password, loop=loop, timeout=timeout, **kwargs)
    cache = KeyCache() if cache is None else cache
    one = _Login(connect, args, kwargs, Claim(user, password, None, trust), cache, loop, ip)
    try:
        async with asyncio.timeout(timeout):
            return await one.run()
    finally:
        one.claim.drop()
        if asked is not None and one.claim.asked:
            asked("{} over {}".format(*one.claim.asked))


async def _plain(connect: Callable[..., Awaitable[Any]], *args: Any, password: Secret, **kwargs: Any) -> Any:
    lent = _Lent(password)
    try:
        return await connect(*args, password=lent, **kwargs)
    except BaseException as exc:
        without_frames(exc)  # even a cancellation's: it becomes the cause of an acquire's timeout, and those show
        raise
    finally:
        lent.take_back()


class _Lent:
    """A password for one login, as a callable. asyncpg keeps it in the connection, so it is emptied after the login.

    It can be called more than once, since asyncpg calls it for each host.
    """

    __slots__ = ("_password",)

    def __init__(self, password: Secret) -> None:
        self._password: Secret | None = password

    def __call__(self) -> str:
        if self._password is None:
            raise asyncpg.InterfaceError("this password could be used for one login only, which is over")
        return self._password.reveal()

    def take_back(self) -> None:
        self._password = None


class _Login:
    """One login with asyncpg's own connect."""

    def __init__(
        self,
        connect: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        claim: Claim,
        cache: KeyCache,
        loop: asyncio.AbstractEventLoop,
        ip: str | None,
    ) -> None:
        self.claim = claim
        self._connect = connect
        self._args = args
        self._kwargs = {**kwargs, "user": claim.user, "timeout": None}
        self._cache = cache
        self._loop = loop
        self._ip = ip

    async def run(self) -> Any:
        password, trust = self.claim.password, self.claim.trust
        assert password is not None
        works = await _asyncpg_works()
        if works:
            try:
                return await self._with_current_files()
            except _NotAsked:
                works = False
            finally:
                self._warn_of_cleartext()
        if trust.explicit:
            raise ConfigurationError(
                f"require_auth= and channel_binding= cannot be enforced: asyncpg {asyncpg.__version__} is not as "
                "expected, or something in this process replaces parts of it"
            )
        return await _plain(self._connect, *self._args, password=password, loop=self._loop, **self._kwargs)

    async def _with_current_files(self) -> Any:
        """Log in with the cached TLS context. If TLS fails, log in again with a new one: files may have been replaced.

        If the server rejects a client certificate, that looks like a lost connection.
        """
        contexts = self._cache.contexts
        arguments = {**dict(zip(("dsn",), self._args, strict=False)), **self._kwargs, "password": _PLACEHOLDER}
        context = await contexts.shared(arguments, self._loop)
        if context is None:
            return await self._once(self._kwargs)
        try:
            con = await self._once({**self._kwargs, "ssl": context})
        except (ssl.SSLError, OSError, asyncpg.PostgresConnectionError):
            if self.claim.answered or not self.claim.began_tls:
                raise
            contexts.forget()
            if contexts.worked is not context:
                raise
            con = None
        if con is None:
            context = await contexts.shared(arguments, self._loop) or context
            con = await self._once({**self._kwargs, "ssl": context})
        contexts.worked = context
        return con

    async def _once(self, kwargs: Mapping[str, Any]) -> Any:
        view = _LoginLoop(self._loop, self.claim, self._ip)
        self.claim.keys = lambda secret, challenge: self._cache.keys(secret, challenge, self._loop)
        return await answered(self._connect, *self._args, claim=self.claim, view=view, **kwargs)

    def _warn_of_cleartext(self) -> None:
        if self.claim.unverified and not self._cache.has_warned:
            self._cache.has_warned = True
            logger.warning(
                "The server asked for the password of %r as plain text, and got it through TLS, but it was not checked "
                "that the certificate belongs to the host: use sslmode=verify-full with sslrootcert=",
                self.claim.user,
            )


class _NotAsked(Exception):
    """The server refused the placeholder, so the handshake was not in front of asyncpg's protocol."""


async def answered(
    connect: Callable[..., Awaitable[Any]], *args: Any, claim: Claim, view: _LoginLoop, **kwargs: Any
) -> Any:
    """Call asyncpg's connect with a view of the loop, so that the handshake answers the server instead of asyncpg."""
    try:
        con = await _watched(connect(*args, password=_PLACEHOLDER, loop=view, **kwargs), view.step_in)
    except BaseException as exc:
        view.abort()
        if not isinstance(exc, Exception):
            raise
        if claim.failure is not None:
            raise claim.failure from None
        if isinstance(exc, asyncpg.PostgresError) and not claim.handled:
            raise _NotAsked from None
        raise
    finally:
        claim.keys = None
    try:
        _return_to(view.real, con)
    except AttributeError:  # can only happen in the self-test
        con.terminate()
        raise
    return con


async def _asyncpg_works() -> bool:
    global _works
    if _works is None:
        try:
            await run_self_test(answered, _LoginLoop)
        except Exception as exc:
            _works = False
            logger.warning(
                "asyncpg %s is not as expected (%r), so it logs in by itself: each login derives its SCRAM keys again, "
                "on the event loop, and sends the password as plain text to any server that asks for it",
                asyncpg.__version__,
                exc,
            )
        else:
            _works = True
    return _works


# The rest relies on asyncpg's internals. The self-test checks that.


def _return_to(loop: asyncio.AbstractEventLoop, con: Any) -> None:
    # asyncio.current_task(view) is None, so with the view every query timeout would leave a task behind. asyncpg's
    # protocol keeps the view and offers no way to replace it, but only calls methods that are the real loop's.
    con._loop = loop
    con._stmt_cache._loop = loop


@coroutine
def _watched(connecting: Awaitable[Any], after_each_step: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Await something, and call a function whenever it suspends, before the event loop continues.

    This is how the handshake gets into a connection that was encrypted by STARTTLS. There asyncpg upgrades the
    transport, makes its protocol, sends the startup message and sets the protocol without suspending, and then waits
    for the login. At that moment there is a protocol to put the handshake in front of, and nothing can have been read
    yet. The next loop iteration would be too late on uvloop, which polls first. Pausing reading until then is no
    solution: uvloop drops what it has buffered, so the refusal of a server that closes immediately would be lost.

    The code spells out what `yield from` does, since that offers no place for a call between two steps.
    """
    steps = connecting.__await__()
    resume: Callable[[Any], Any] = steps.send
    value: Any = None
    while True:
        try:
            waited_for = resume(value)
        except StopIteration as end:
            return end.value
        after_each_step()
        try:
            value = yield waited_for
            resume = steps.send
        except BaseException as exc:  # a cancellation, which is asyncpg's to handle
            value = exc
            resume = steps.throw


class _LoginLoop:
    """The event loop as asyncpg sees it during a login. It puts a handshake in front of each of asyncpg's protocols."""

    def __init__(self, real: asyncio.AbstractEventLoop, claim: Claim, ip: str | None = None) -> None:
        self.real = real
        self._claim = claim
        self._ip = ip
        self._upgraded: asyncio.Transport | None = None  # a transport for which asyncpg will make its protocol later
        self._made: list[asyncio.Transport] = []  # every transport of this login
        # asyncpg's protocol will use these through the view. As attributes, they are as fast as the real loop's.
        self.call_later, self.time, self.create_future = real.call_later, real.time, real.create_future

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def create_connection(self, factory: Callable[[], Any], host: str, port: int, **kwargs: Any) -> Any:
        if kwargs.get("ssl"):
            self._claim.began_tls = True
            kwargs["server_hostname"] = host
        build, failures = self._in_front(factory), list[OSError]()
        for address in [self._ip] if self._ip else await addresses_of(host, port, self.real):
            try:
                return self._entered(await self.real.create_connection(build, address, port, **kwargs))
            except OSError as exc:
                failures.append(exc)
        if len({str(failure) for failure in failures}) == 1:
            raise failures[0]
        raise OSError(f"Multiple exceptions: {', '.join(map(str, failures))}")  # as in asyncio

    async def create_unix_connection(self, factory: Callable[[], Any], path: str) -> Any:
        try:
            return self._entered(await self.real.create_unix_connection(self._in_front(factory), path))
        except OSError as exc:
            exc.filename = exc.filename or path  # asyncio does not say which file is missing
            raise

    async def start_tls(self, *args: Any, **kwargs: Any) -> Any:
        self._claim.began_tls = True
        self._upgraded = await self.real.start_tls(*args, **kwargs)
        if self._upgraded is not None:
            self._made.append(self._upgraded)
        return self._upgraded

    def _in_front(self, factory: Callable[[], Any]) -> Callable[[], Any]:
        def build() -> Any:
            protocol = factory()
            return Handshake(self._claim, protocol) if isinstance(protocol, AsyncpgProtocol) else protocol

        return build

    def _entered(self, made: tuple[asyncio.Transport, Any]) -> tuple[asyncio.Transport, Any]:
        transport, protocol = made
        self._made.append(transport)
        if isinstance(protocol, Handshake):
            self._upgraded = None
            return transport, protocol.inner
        # This is the protocol that asyncpg uses for the SSLRequest. If the server declines TLS, nothing is upgraded.
        self._upgraded = transport
        return made

    def abort(self) -> None:
        """Close the sockets of a login that has failed, without waiting for the server.

        asyncpg has closed the transports, but with TLS, that waits up to 30 s for an answer.
        """
        for transport in self._made:
            transport.abort()

    def step_in(self) -> None:
        """Put a handshake in front of asyncpg's protocol as soon as that exists."""
        transport = self._upgraded
        if transport is None or transport.is_closing():
            return
        protocol = transport.get_protocol()
        if isinstance(protocol, AsyncpgProtocol):
            self._upgraded = None
            read_in_pieces(transport)
            transport.set_protocol(Handshake(self._claim, protocol, transport))


def disown(con: asyncpg.Connection[Any]) -> None:
    """Mark a connection as closed without notifying the server, since after a fork it belongs to the parent."""
    con._aborted = True  # type: ignore[attr-defined]
