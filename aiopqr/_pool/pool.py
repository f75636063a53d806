"""``AlternatingPool``: an ``asyncpg.Pool`` whose connections take two accounts in turn and are replaced as they work.

asyncpg's pool keeps the connections. Around it stand the connector, which makes them; the waiters, by which acquirers
come first served; and the replacement, which retires what is due. What asyncpg would do at an acquirer's expense
(a dead connection handed out, a working one dropped for one that may not come) happens elsewhere or not at all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, Self

import asyncpg
from asyncpg.pool import PoolAcquireContext

from .._connect import CONNECT_TIMEOUT, Connector
from .._refresh import Refresher
from ..credentials import CredentialPair
from ..errors import ConfigurationError
from ..events import CredentialsRenewed, Emitter, Event, Listener, Refreshed
from ..options import (
    check_connect_arguments,
    given,
    non_negative,
    optional_timeout,
    positive,
    whole_number_or_none,
)
from ..sources import Credentials
from ..stats import Histogram, PoolStats
from ._asyncpg import counting_copies
from .checkout import UNSET, Checkouts, Policy
from .connection import PooledConnection, lifetime_option
from .connections import Connections
from .leases import Leases
from .replacement import Replacement
from .waiters import Waiters

logger = logging.getLogger("aiopqr")


class AlternatingPool(asyncpg.Pool):
    """A pool of asyncpg connections that alternate between the two accounts of a credential pair.

    It takes what :func:`asyncpg.create_pool` takes, but for ``user`` and ``password``, and behaves as it documents.
    Times are in seconds.

    ``credentials``
        A source, an async callable, a fixed :class:`CredentialPair`, or a :class:`Refresher` that pools share.
    ``max_lifetime``, ``max_lifetime_jitter``
        How old a connection gets before it is replaced, and by how much earlier at most (default: a tenth). 0 turns it
        off. The replacement is opened first, so the pool opens at most ``max_size + 1`` connections.
    ``acquire_timeout``
        For ``acquire()`` alone, where the call gives none; None waits for ever.
    ``reset_timeout``
        For ``release()``, where neither it nor the ``acquire()`` was given a timeout.
    ``max_waiting``
        How many may wait in ``acquire()``; the next one gets :class:`TooManyWaiting` at once.
    ``check_after``
        A connection that was idle for longer is checked before it is handed out; 0 turns it off.
    ``session_reset``
        ``"full"`` resets the session on release as asyncpg does; ``"transaction"`` only rolls back an open transaction,
        so that SET, LISTEN, advisory locks and temporary tables outlive the release. Nothing is reset if nothing ran.
    ``leak_detection_threshold``
        Warn, with the stack of the acquire, when a connection is held for longer; 0 turns it off.
    ``drain_on_rotation``
        Replace the connections of superseded credentials at once, rather than at the end of their lifetime.
    ``refresh_interval``, ``fetch_timeout``
        Between fetches that nobody asked for (default: the source's own), and for one fetch.
    ``scram_cache``
        Keep the SCRAM keys of the passwords in use, and derive them once, not for each connect.
    ``require_auth``, ``channel_binding``
        What the server may ask for, as in libpq; also in the DSN. By default the password is not sent in clear over
        plain TCP, and its proof is bound to the server's certificate where the server can. A server that asks for more
        gets nothing: :class:`UntrustedServer`.
    ``max_queries``
        Off unless given. It is asyncpg's, and closes a connection before there is another.
    ``timeout``
        For one connect, with the fallback and all waiting for newer credentials or a server that is down (default 60).
    ``name``, ``listeners``
        For logs, tasks, errors and metrics; and functions that get each :class:`~aiopqr.events.Event`.
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
        session_reset: str = "full",
        leak_detection_threshold: float = 0.0,
        drain_on_rotation: bool = False,
        refresh_interval: float | None = None,
        fetch_timeout: float = 10.0,
        scram_cache: bool = True,
        require_auth: str | None = None,
        channel_binding: str | None = None,
        name: str = "aiopqr",
        listeners: Iterable[Listener] = (),
        min_size: int = 10,
        max_size: int = 10,
        max_queries: float | None = None,
        max_inactive_connection_lifetime: float = 300.0,
        connect: Callable[..., Awaitable[Any]] | None = None,
        setup: Callable[[Any], Awaitable[None]] | None = None,
        init: Callable[[Any], Awaitable[None]] | None = None,
        reset: Callable[[Any], Awaitable[None]] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        connection_class: type[Any] = asyncpg.Connection,
        record_class: type[Any] = asyncpg.Record,
        **kwargs: Any,
    ) -> None:
        args: tuple[Any, ...] = () if dsn is None else (dsn,)
        kwargs |= given(require_auth=require_auth, channel_binding=channel_binding)
        kwargs["timeout"] = timeout if timeout is None else positive("timeout", timeout)
        check_connect_arguments(args, kwargs, connect=connect)
        if session_reset not in ("full", "transaction"):
            raise ConfigurationError('session_reset must be "full" or "transaction"')
        # A user's own connect= may make what it likes, so only asyncpg's connections are known to count every query.
        counts_queries = connect is None and issubclass(connection_class, asyncpg.Connection)
        policy = Policy(
            acquire_timeout=optional_timeout("acquire_timeout", acquire_timeout),
            reset_timeout=math.inf if reset_timeout is None else positive("reset_timeout", reset_timeout),
            idle_limit=non_negative("max_inactive_connection_lifetime", max_inactive_connection_lifetime) or math.inf,
            floor=min_size,
            check_after=non_negative("check_after", check_after) or math.inf,
            leak_threshold=non_negative("leak_detection_threshold", leak_detection_threshold),
            full_reset=session_reset == "full",
            counts_queries=counts_queries,
            resets_as_asyncpg=counts_queries and connection_class.reset is asyncpg.Connection.reset,
            may_close_on_release=max_queries is not None,
            setup=setup,
            reset=reset,
        )
        waiting = whole_number_or_none("max_waiting", max_waiting)
        lifetime = lifetime_option(max_lifetime, max_lifetime_jitter)
        loop = loop or asyncio.get_event_loop()
        constants: dict[str, Any] = {
            "loop": loop,
            "connection_class": counting_copies(connection_class) if counts_queries else connection_class,  # type: ignore[arg-type]
            "record_class": record_class,
        }
        self.name = name
        self._event_loop = loop
        self._own_connect = connect
        # It gets the arguments with each call, since set_connect_args() may change them.
        self._connector = Connector(
            credentials=credentials,
            connect=connect,
            refresh_interval=refresh_interval,
            fetch_timeout=fetch_timeout,
            scram_cache=scram_cache,
            name=name,
            listeners=listeners,
        )
        self.events: Emitter = self._connector.events
        # The emitter is held by background work, which must not keep a pool alive that was dropped.
        ref = weakref.ref(self)
        self.events.add(lambda event: pool._heard(event) if (pool := ref()) else None)
        self._drain_on_rotation = drain_on_rotation
        self._connections = Connections(self._connector, lifetime, constants, init)
        self._connections.set_arguments(args, {key: value for key, value in kwargs.items() if key != "init_size"})
        self._connections.on_end = self._ended
        self._replacement = Replacement(self._connections, min_size)
        self._leases = Leases(self._connections, self._replacement.wake)
        self._connections.on_begin = self._leases.begin
        self._waiters = Waiters(max_size, waiting, loop)
        self._checkouts = Checkouts(
            self,
            policy,
            self._connections,
            self._replacement,
            self._waiters,
            self.events,
            acquire=super().acquire,
            release=super().release,
            loop=loop,
        )
        super().__init__(
            *args,
            min_size=min_size,
            max_size=max_size,
            max_queries=math.inf if max_queries is None else max_queries,  # type: ignore[arg-type]
            max_inactive_connection_lifetime=0.0,  # `IdleWatch` looks after that
            connect=self._checkouts.connect,
            reset=self._checkouts.reset,
            **constants,
            **kwargs,
        )
        self._departed = asyncio.Event()
        self._state = "new"

    def __repr__(self) -> str:
        return f"<AlternatingPool {self.name!r} {self._state}, {len(self._connections)} of {self.get_max_size()} open>"

    # Opening and closing.

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def _open(self) -> Self:
        if self._state == "opening":
            raise asyncpg.InterfaceError("pool is being initialized in another task")
        if self._state != "new":
            await super().__aenter__()  # says what asyncpg says of it
            return self
        self._state = "opening"
        self._initializing = True  # asyncpg's own: what is called too early says so
        try:
            try:
                await self._connector.start()
            finally:
                self._initializing = False
            await super().__aenter__()
        except BaseException:
            self._state = "closed"
            await self._end()
            raise
        self._state = "open"
        self._replacement.start()
        return self

    async def close(self, *, timeout: float | None = None) -> None:
        """Refuse those who wait for a connection, wait until all connections are released, and close everything.

        After ``timeout`` seconds, connections still in use are terminated; None waits for them. Cancelling it
        terminates them at once.
        """
        if self._state != "open":
            await super().close()
            return
        self._state = "closing"
        self._closing = True  # asyncpg's own: its floor maintenance must not take this for a failure
        self._turn_away()
        try:
            await self._replacement.close()
            # asyncpg would say goodbye to each without a limit, and one may be dead without anybody knowing. These
            # begin in the next turn of the loop, when asyncpg's close() has begun and restores nothing to its floor.
            for pooled in self._connections:
                if pooled.is_idle:
                    self._replacement.close_later(pooled.con)
            async with asyncio.timeout(timeout) as limit:
                await super().close()
        except TimeoutError:
            if not limit.expired():
                raise
            logger.warning("%s: connections still in use %g s after close() were terminated", self.name, timeout)
        except BaseException:
            self.terminate()
            raise
        finally:
            self._state = "closed"
            await self._end()

    def terminate(self) -> None:
        """Terminate all connections, and cancel the background work, without waiting for it."""
        if self._state in ("open", "closing"):
            self._state = "closed"
            self._turn_away()
            self._checkouts.stop()
            self._replacement.terminate()
            self._connector.terminate()
        super().terminate()

    def __del__(self) -> None:
        if getattr(self, "_state", "") == "open":
            left = f"unclosed pool {self!r}, with {len(self._connections)} unclosed connections"
            warnings.warn(left, ResourceWarning, source=self, stacklevel=2)
            if not self._event_loop.is_closed():
                self.terminate()

    def _turn_away(self) -> None:
        self._leases.close()
        self._waiters.close(self._connections.closing_error)
        self._connections.cancel_openings()

    async def _end(self) -> None:
        """Leave nothing behind; where even that is cancelled, without waiting for it."""
        self._checkouts.stop()
        self._connections.cancel_openings()
        try:
            await self._connections.wait_openings()
            await self._replacement.close()
            await self._connector.close()
        except BaseException:
            self._replacement.terminate()
            self._connector.terminate()
            raise

    # What users of asyncpg's pool know, with credentials in mind.

    def acquire(self, *, timeout: float | None = UNSET) -> PoolAcquireContext[asyncpg.Record]:
        """A connection, as a context manager or awaited.

        ``timeout`` is in seconds; without it ``acquire_timeout`` counts, and None waits for ever. Raises
        :class:`AcquireTimeout`, :class:`TooManyWaiting`, :class:`PoolClosing`, and what a connect may raise.
        """
        return _Acquire(self, timeout)

    def release(self, connection: Any, *, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """Give a connection back. Its session is reset first, unless nothing ran.

        A connection that was lost meanwhile raises nothing: the queries that succeeded did so. Raises ``TimeoutError``
        and the server's errors where the reset fails; the connection is then dropped. Cancelling it does not stop it.
        """
        return self._checkouts.release(connection, timeout)

    async def expire_connections(self) -> None:
        """Replace every connection on its next acquire or release, as asyncpg does: first close, then connect.

        :meth:`drain` opens the replacement first.
        """
        self._connections.begin_epoch()
        self._replacement.wake()
        await super().expire_connections()

    def set_connect_args(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Connect differently from now on. Takes everything but ``user`` and ``password``."""
        check_connect_arguments((dsn,), connect_kwargs, connect=self._own_connect)
        self._connections.set_arguments((dsn,), connect_kwargs)
        self._replacement.wake()
        super().set_connect_args(dsn, **connect_kwargs)

    # What only this pool has.

    async def refresh(self) -> None:
        """Fetch credentials now. Returns after a fetch that started after this call; raises what it raised."""
        await self._connector.refresh()

    async def drain(self) -> None:
        """Replace every connection of superseded credentials, one after the other, and return when the last is gone.

        A connection in use is replaced on its release. Cancelling it stops the waiting, not the replacement.
        """
        self._connections.begin_epoch()
        self._replacement.wake()
        while superseded := self._connections.expire_superseded():
            for pooled in superseded:
                while pooled in self._connections:
                    await self._departed.wait()

    @property
    def connector(self) -> Connector:
        """What makes the pool's connections. Its own ``connect()`` knows nothing of the pool's arguments."""
        return self._connector

    @property
    def pair(self) -> CredentialPair:
        """The credentials in use."""
        return self._connector.pair

    @property
    def wait_time(self) -> Histogram:
        """How long acquires took, for whoever wants each single measurement."""
        return self._checkouts.wait_time

    @property
    def use_time(self) -> Histogram:
        """How long connections were checked out."""
        return self._checkouts.use_time

    def stats(self) -> PoolStats:
        """A frozen snapshot. No secret is in it."""
        alive = [pooled for pooled in self._connections if not pooled.con.is_closed()]
        idle = sum(pooled.is_idle for pooled in alive)
        return PoolStats(
            **self._connector.stats_fields(),
            min_size=self.get_min_size(),
            max_size=self.get_max_size(),
            size=len(alive),
            idle=idle,
            in_use=len(alive) - idle,
            waiting=self._waiters.waiting,
            spare=self._replacement.spares,
            acquired=self._checkouts.acquired,
            timeouts=self._checkouts.timeouts,
            lost=self._checkouts.lost,
            replacements=self._replacement.stats(),
            wait_time=self.wait_time.snapshot(),
            use_time=self.use_time.snapshot(),
        )

    # What calls back: a connection's end, and the connector's events.

    def _ended(self, pooled: PooledConnection) -> None:
        self._checkouts.give_back(pooled, self._event_loop.time())
        self._replacement.wake()
        self._departed.set()
        self._departed = asyncio.Event()

    def _heard(self, event: Event) -> None:
        if isinstance(event, Refreshed) and self._drain_on_rotation:
            self._connections.expire_superseded()
            self._replacement.wake()
        if isinstance(event, Refreshed | CredentialsRenewed):
            self._leases.look()


class _Acquire(PoolAcquireContext):
    """asyncpg's context, by way of the waiters."""

    __slots__ = ()

    pool: AlternatingPool

    async def __aenter__(self) -> Any:
        if self.connection is not None or self.done:
            raise asyncpg.InterfaceError("a connection is already acquired")
        self.connection = await self.pool._checkouts.acquire(self.timeout)
        return self.connection

    def __await__(self) -> Generator[Any, None, Any]:
        self.done = True
        return self.pool._checkouts.acquire(self.timeout).__await__()


create_pool = AlternatingPool
