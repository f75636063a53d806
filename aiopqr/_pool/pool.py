"""``AlternatingPool``: an ``asyncpg.Pool`` whose connections use two accounts in turn and are replaced in time.

asyncpg's pool keeps the connections, each in a place. Everything else is done around it: the connector makes the
connections, the supply opens and checks them in the background, the waiters serve acquirers in order, and the
replacement retires connections that are due. So nobody is given a dead connection, or waits while one is being closed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, Literal, Self, Unpack

import asyncpg

from .._connect import CONNECT_TIMEOUT, Connector, maker_of
from .._refresh import Refresher
from ..clock import call_in
from ..credentials import CredentialPair
from ..events import CredentialsRenewed, Emitter, Event, Listener, Refreshed
from ..options import (
    ConnectArguments,
    check_connect_arguments,
    given,
    positive,
    whole_number_or_none,
)
from ..sources import Credentials
from ..stats import Histogram, PoolStats
from .acquire import UNSET, Acquires
from .connection import PooledConnection, lifetime_option
from .connections import Connections
from .generic import BaseAcquireContext, BasePool, ConnectionT, RecordT
from .leases import Leases
from .policy import Policy, make_policy
from .release import Releases
from .replacement import Replacement
from .supply import Supply
from .waiters import Waiters

logger = logging.getLogger("aiopqr")


class AlternatingPool(BasePool[RecordT, ConnectionT]):
    """An ``asyncpg.Pool`` whose connections use the two accounts of a credential pair in turn.

    :func:`create_pool` makes one and explains the options, which are the same here. Use the pool as an async context
    manager, or await it and call :meth:`close` yourself.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        credentials: Credentials | Refresher,
        max_lifetime: float = 1800.0,
        max_lifetime_jitter: float | None = None,
        acquire_timeout: float | None = 30.0,
        reset_timeout: float | None = 10.0,
        timeout: float | None = CONNECT_TIMEOUT,
        max_waiting: int | None = None,
        check_after: float = 1.0,
        session_reset: Literal["full", "deferred", "transaction"] = "full",
        leak_detection_threshold: float = 0.0,
        drain_on_rotation: bool = False,
        refresh_interval: float | None = None,
        fetch_timeout: float = 10.0,
        keep_renamed: bool = True,
        scram_cache: bool = True,
        require_auth: str | None = None,
        channel_binding: Literal["disable", "prefer", "require"] | None = None,
        writer_guard: bool = True,
        name: str = "aiopqr",
        listeners: Iterable[Listener] = (),
        min_size: int = 10,
        max_size: int = 10,
        max_queries: int | None = None,
        max_inactive_connection_lifetime: float = 300.0,
        connect: Callable[..., Awaitable[Any]] | None = None,
        setup: Callable[[Any], Awaitable[None]] | None = None,
        init: Callable[[Any], Awaitable[None]] | None = None,
        reset: Callable[[Any], Awaitable[None]] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        connection_class: type[ConnectionT] = asyncpg.Connection,  # type: ignore[assignment]
        record_class: type[RecordT] = asyncpg.Record,  # type: ignore[assignment]
        **connect_arguments: Unpack[ConnectArguments],
    ) -> None:
        kwargs: dict[str, Any] = {**connect_arguments}
        args: tuple[Any, ...] = () if dsn is None else (dsn,)
        kept = given(require_auth=require_auth, channel_binding=channel_binding)
        self._kept = {**kept, "timeout": timeout if timeout is None else positive("timeout", timeout)}
        kwargs |= self._kept
        check_connect_arguments(args, kwargs, connect=connect)
        policy = make_policy(
            min_size=min_size,
            acquire_timeout=acquire_timeout,
            reset_timeout=reset_timeout,
            max_inactive_connection_lifetime=max_inactive_connection_lifetime,
            check_after=check_after,
            leak_detection_threshold=leak_detection_threshold,
            session_reset=session_reset,
            max_queries=max_queries,
            connect=connect,
            connection_class=connection_class,
            setup=setup,
            reset=reset,
        )
        most_waiting = whole_number_or_none("max_waiting", max_waiting)
        lifetime = lifetime_option(max_lifetime, max_lifetime_jitter)
        self.name = name
        self._drain_on_rotation = drain_on_rotation
        self._own_connect = connect
        self._event_loop = loop = loop or asyncio.get_event_loop()
        # The pool passes the connect arguments with each call, since set_connect_args() may change them.
        self._connector = Connector(
            credentials=credentials,
            connect=connect,
            refresh_interval=refresh_interval,
            fetch_timeout=fetch_timeout,
            keep_renamed=keep_renamed,
            scram_cache=scram_cache,
            name=name,
            listeners=listeners,
        )
        constants = {"loop": loop, "connection_class": policy.connection_class, "record_class": record_class}
        self._connections = Connections(maker_of(self._connector), lifetime, constants, init, max_size, writer_guard)
        self._connections.set_arguments(args, {key: value for key, value in kwargs.items() if key != "init_size"})
        self._waiters = Waiters(max_size, most_waiting, loop, closed=self._not_open)
        self._assemble(policy)
        super().__init__(
            *args,
            min_size=min_size,
            max_size=max_size,
            max_queries=math.inf if max_queries is None else max_queries,  # type: ignore[arg-type]
            max_inactive_connection_lifetime=0.0,  # `IdleTimer` does that instead
            connect=self._supply.connect,
            reset=self._releases.reset,
            **constants,
            **kwargs,
        )
        self._state = "new"

    def _assemble(self, policy: Policy) -> None:
        """Create the parts, each from those before it, and connect their callbacks."""
        loop, connections = self._event_loop, self._connections
        self._replacement = Replacement(connections, policy.floor)
        self._leases = Leases(connections, self._replacement.wake)
        self._supply = Supply(self, policy, connections, self._replacement, loop)
        self._acquires = Acquires(policy, connections, self._supply, self._waiters, loop)
        self._releases = Releases(policy, connections, self._replacement, self._supply, self._waiters, loop)
        self._departed = asyncio.Event()
        self._was_closed = asyncio.Event()
        connections.on_begin = self._began
        connections.on_end = self._ended
        self.events: Emitter = self._connector.events
        # Background work has a reference to the emitter, which must not keep an unused pool alive.
        ref = weakref.ref(self)
        self.events.add(lambda event: pool._heard(event) if (pool := ref()) else None)
        _alive.add(self)

    def __repr__(self) -> str:
        return f"<AlternatingPool {self.name!r} {self._state}, {len(self._connections)} of {self.get_max_size()} open>"

    # Opening and closing.

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def _open(self) -> Self:
        self._check_loop()
        if self._state == "opening":
            raise asyncpg.InterfaceError("pool is being initialized in another task")
        if self._state != "new":
            await super().__aenter__()  # raises asyncpg's own error, if any
            return self
        self._state = "opening"
        self._initializing = True  # asyncpg's flag, so that methods called too early raise its error
        try:
            try:
                await self._connector.start()
                connections = self._connections
                seen = weakref.ref(connections)  # weak, since a login that is ending may keep the maker alive
                connections.maker.limit_extra_logins(lambda: found.room if (found := seen()) is not None else 0)
            finally:
                self._initializing = False
            await super().__aenter__()
        except BaseException:
            self._state = "closed"
            await self._end()
            raise
        self._state = "open"
        self._replacement.start()
        self._supply.start()
        self._waiters.open()
        return self

    async def close(self, *, timeout: float | None = None) -> None:
        """Turn away tasks that wait for a connection, wait until all connections are released, and close everything.

        After ``timeout`` seconds, connections that are still open are terminated; None waits as long as it takes.
        Cancelling the call terminates them immediately.
        """
        self._check_loop()
        if self._state == "closing":
            await self._within(timeout, self._wait_closed)
            return
        if self._state != "open":
            await super().close()  # raises asyncpg's own error, if any
            return
        self._state = "closing"
        self._closing = True  # asyncpg's flag: no more acquires
        self._turn_away()
        try:
            await self._within(timeout, self._close)
        except BaseException:
            self.terminate()
            raise
        finally:
            self._state = "closed"
            try:
                await self._end()
            finally:
                self._was_closed.set()

    async def _within(self, timeout: float | None, close: Callable[[], Awaitable[None]]) -> None:
        """Await ``close()``. After ``timeout`` seconds, cancel it, so that it terminates the connections."""
        try:
            async with asyncio.timeout(timeout) as limit:
                await close()
        except TimeoutError:
            if not limit.expired():
                raise
            logger.warning("%s: terminated the connections that were still open %g s after close()", self.name, timeout)

    async def _wait_closed(self) -> None:
        """Wait until another task has closed the pool. (If asyncpg waited in both, ending one would end the other.)"""
        try:
            await self._was_closed.wait()
        except BaseException:
            self.terminate()
            raise

    async def _close(self) -> None:
        try:
            await self._replacement.close()
            # asyncpg would close each of them gracefully without a timeout, and one may have died unnoticed.
            for pooled in tuple(self._connections):
                if pooled.is_idle:
                    self._connections.close_later(pooled)
            await super().close()
            await self._connections.wait_closed()
        except BaseException:
            self._connections.terminate()
            raise

    def terminate(self) -> None:
        """Terminate all connections and cancel the background work, without waiting for it.

        You may call this after the event loop has stopped, but not from another thread or after the loop was closed.
        """
        if self._state in ("open", "closing"):
            if self._event_loop.is_running() or self._event_loop.is_closed():
                self._check_loop()
            self._state = "closed"
            self._closing = True  # asyncpg's flag: it opens no more connections for min_size
            self._turn_away()
            self._releases.stop()
            self._replacement.terminate()
            self._connections.terminate()
            self._connector.terminate()
        super().terminate()

    def __del__(self) -> None:
        if getattr(self, "_state", "") == "open":
            left = f"unclosed pool {self!r}, with {len(self._connections)} unclosed connections"
            warnings.warn(left, ResourceWarning, source=self, stacklevel=2)
            self._connector.terminate()  # first, so that it does not warn as well
            call_in(self._event_loop, self.terminate)

    def _turn_away(self) -> None:
        self._leases.close()
        self._connections.is_closing = True
        self._waiters.close(self._connections.closing_error)
        self._supply.close()

    async def _end(self) -> None:
        """Clean up everything. If that is cancelled, terminate the rest without waiting for it."""
        self._releases.stop()
        self._supply.close()
        try:
            await self._supply.wait_closed()
            await self._releases.wait_closed()
            await self._replacement.close()
            await self._connections.wait_closed()
            await self._connector.close()
        except BaseException:
            self._replacement.terminate()
            self._connections.terminate()
            self._connector.terminate()
            raise

    def _not_open(self) -> Exception:
        """The error that asyncpg raises for a pool that is used too early or too late."""
        try:
            self._check_init()  # type: ignore[attr-defined]
        except asyncpg.InterfaceError as exc:
            return exc
        return self._connections.closing_error()

    def _disown(self) -> None:
        """Called in the child of a fork."""
        self._state = "left to the parent process"
        self._waiters.close(self._connections.wrong_loop_error)
        self._connections.is_closing = True

    def _check_loop(self) -> None:
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self._event_loop:
            raise self._connections.wrong_loop_error()

    # Methods of asyncpg's pool.

    def acquire(self, *, timeout: float | None = UNSET) -> AcquireContext[RecordT, ConnectionT]:
        """Get a connection. Use the result with ``async with``, or await it and call :meth:`release` yourself.

        ``timeout`` is in seconds (default: ``acquire_timeout``; None: wait as long as it takes). Raises
        :class:`AcquireTimeout`, :class:`TooManyWaiting`, :class:`PoolClosing`, or any error of a connect.
        """
        return AcquireContext(self, timeout)

    def release(self, connection: Any, *, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Give a connection back. Its session is reset first, unless nothing ran.

        ``timeout`` is in seconds; the default is the timeout of the ``acquire()``, or else ``reset_timeout``. If the
        connection has been lost, nothing is raised, because its queries have succeeded. If the reset fails, the
        connection is closed and the server's error or ``TimeoutError`` is raised. Cancelling the call does not stop the
        release.
        """
        return self._releases.release(connection, timeout)

    async def expire_connections(self) -> None:
        """Replace every connection on its next acquire or release, as asyncpg does: close it, then open a new one.

        Unlike this, :meth:`drain` opens the replacement first.
        """
        self._check_loop()
        self._connections.expire_all()
        self._replacement.wake()
        await super().expire_connections()

    def set_connect_args(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Use these arguments for new connections. They may be anything but ``user`` and ``password``.

        Open connections stay as they are. The pool's ``timeout``, ``require_auth`` and ``channel_binding`` stay in
        effect unless you pass new ones.
        """
        check_connect_arguments((dsn,), connect_kwargs, connect=self._own_connect)
        connect_kwargs = {**self._kept, **connect_kwargs}
        self._connections.set_arguments((dsn,), connect_kwargs)
        self._replacement.wake()
        super().set_connect_args(dsn, **connect_kwargs)

    # Methods that only this pool has.

    async def refresh(self) -> None:
        """Fetch credentials now. Returns once a fetch that began after this call has succeeded, or raises its error."""
        self._check_loop()
        await self._connector.refresh()

    async def drain(self) -> None:
        """Replace every connection of superseded credentials, one after another, and return when the last is gone.

        A connection in use is replaced when it is released. Cancelling the call does not stop the replacement.
        """
        self._check_loop()
        self._connections.begin_epoch()
        self._replacement.wake()
        while superseded := self._connections.expire_superseded():
            for pooled in superseded:
                while self._connections.is_open(pooled):
                    await self._departed.wait()

    @property
    def connector(self) -> Connector:
        """The connector that makes the pool's connections. Its ``connect()`` does not use the pool's arguments."""
        return self._connector

    @property
    def pair(self) -> CredentialPair:
        """The credentials in use."""
        return self._connector.pair

    @property
    def wait_time(self) -> Histogram:
        """How long acquires took. Add an observer to get every single measurement."""
        return self._acquires.wait_time

    @property
    def use_time(self) -> Histogram:
        """How long connections were checked out. Add an observer to get every single measurement."""
        return self._releases.use_time

    def stats(self) -> PoolStats:
        """Return a frozen snapshot of the counters, without secrets. Call this in the event loop's thread."""
        self._check_loop()
        fields = self._connections.maker.stats_fields()
        fields["failed"] += self._acquires.failed
        alive = [pooled for pooled in self._connections if not pooled.con.is_closed()]
        idle = sum(pooled.is_idle for pooled in alive)
        return PoolStats(
            **fields,
            min_size=self.get_min_size(),
            max_size=self.get_max_size(),
            size=len(alive),
            idle=idle,
            in_use=len(alive) - idle,
            resetting=sum(pooled.is_resetting for pooled in alive),
            waiting=self._acquires.waiting,
            spare=self._replacement.spares,
            acquired=self._acquires.acquired,
            timeouts=self._acquires.timeouts,
            lost=self._connections.lost,
            not_writable=self._connections.not_writable,
            replacements=self._replacement.stats(self._event_loop.time()),
            wait_time=self.wait_time.snapshot(),
            use_time=self.use_time.snapshot(),
        )

    # Callbacks for the beginning and the end of a connection, and for the connector's events.

    def _began(self, pooled: PooledConnection) -> None:
        self._replacement.born(pooled)
        self._releases.joined(pooled)
        self._leases.begin(pooled)

    def _ended(self, pooled: PooledConnection, was_lost: bool) -> None:
        self._releases.ended(pooled)
        self._supply.ended(pooled, was_lost)
        self._replacement.wake()
        self._departed.set()
        self._departed = asyncio.Event()

    def _heard(self, event: Event) -> None:
        if isinstance(event, Refreshed) and self._drain_on_rotation:
            self._connections.expire_superseded()
            self._replacement.wake()
        if isinstance(event, Refreshed | CredentialsRenewed):
            self._leases.look()


class AcquireContext(BaseAcquireContext[RecordT, ConnectionT]):
    """What ``acquire()`` returns. Use it with ``async with``, or await it and call ``release()`` yourself."""

    __slots__ = ()

    pool: AlternatingPool[RecordT, ConnectionT]

    async def __aenter__(self) -> ConnectionT:  # type: ignore[override]
        if self.connection is not None or self.done:
            raise asyncpg.InterfaceError("a connection is already acquired")
        self.connection = con = await self.pool._acquires.acquire(self.timeout)
        return con  # type: ignore[no-any-return]  # a proxy that has all the methods of the connection

    def __aexit__(  # type: ignore[override]
        self, kind: object = None, exc: BaseException | None = None, trace: object = None
    ) -> Coroutine[Any, Any, None]:
        self.done = True
        connection, self.connection = self.connection, None
        if exc is not None:
            self.pool._releases.failed_with(connection, exc)
        return self.pool.release(connection)

    def __await__(self) -> Generator[Any, None, ConnectionT]:  # type: ignore[override]
        self.done = True
        return self.pool._acquires.acquire(self.timeout).__await__()


_alive: weakref.WeakSet[AlternatingPool[Any, Any]] = weakref.WeakSet()
_inherited: list[AlternatingPool[Any, Any]] = []  # never collected, which would touch the parent's sockets


def _leave_to_parent() -> None:
    for pool in tuple(_alive):
        pool._disown()
        _inherited.append(pool)


os.register_at_fork(after_in_child=_leave_to_parent)
