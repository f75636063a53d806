"""The connections of one pool: how they begin, what is known about each, and how they end.

A pool has ``max_size`` places, and at most one socket more than that. Logins in progress and connections that are being
closed count as sockets too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import asyncpg

from .._connect import CONNECT_TIMEOUT, Maker
from ..clock import cancel
from ..errors import PoolClosing, WrongLoop, describe
from ..events import ConnectionLost, NotWritable
from ._asyncpg import address_of, busy_check
from .connection import Lifetime, PooledConnection
from .stand_in import stand_in_for
from .writers import WriterWatch, watch_writer

logger = logging.getLogger("aiopqr")

INIT_TIMEOUT = 60.0  # an init= hook that hangs would keep its place forever
CLOSE_TIMEOUT = 1.0  # for a graceful close, which waits for the server
QUIET = 1.0  # connections that notice the same change of role within this time report it once
_LEASE_MARGIN = 30.0


def lease_margin(left: float) -> float:
    """How many seconds before the end of a lease to replace its connections, if ``left`` seconds of it are left."""
    return min(_LEASE_MARGIN, left / 2)


class Connections:
    """All connections of a pool. Iterating over it yields those that have a place.

    ``constants`` are the connect arguments that :meth:`set_arguments` cannot change: the loop and the classes. ``init``
    is the user's hook. ``on_begin`` is called when a connection gets a place, and ``on_end`` when it has lost its place
    or its socket, with True if it still had its place when its socket was closed.
    """

    def __init__(
        self,
        maker: Maker,
        lifetime: Lifetime,
        constants: dict[str, Any],
        init: Callable[[Any], Awaitable[None]] | None,
        max_size: int,
        guards_writers: bool,
    ) -> None:
        self.maker = maker
        self.lifetime = lifetime
        self.is_closing = False
        self.on_begin: Callable[[PooledConnection], None] = lambda _: None
        self.on_end: Callable[[PooledConnection, bool], None] = lambda _pooled, _was_lost: None
        self.lost = 0  # found dead
        self.not_writable = 0  # closed because their server no longer accepts writes
        self.last_opened = -math.inf  # in loop time
        self._next_opened: asyncio.Future[None] | None = None
        self.by_connection: dict[Any, PooledConnection] = {}
        self._constants = constants
        self._loop: asyncio.AbstractEventLoop = constants["loop"]
        self._init = init
        self._most_sockets = max_size + 1
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._epoch = 0
        self._expired_epoch = 0
        self._drained_at = -math.inf
        self._open: set[PooledConnection] = set()  # with or without a place
        self._logins = 0  # in progress
        self._leaving: dict[asyncio.Task[None], PooledConnection] = {}
        self._guards_writers = guards_writers
        self._doubted_at = -math.inf

    def __iter__(self) -> Iterator[PooledConnection]:
        return iter(self.by_connection.values())

    def __len__(self) -> int:
        return len(self.by_connection)

    @property
    def room(self) -> int:
        """How many more sockets there may be."""
        return self._most_sockets - len(self._open) - self._logins

    def is_open(self, pooled: PooledConnection) -> bool:
        """Whether its socket is still open, with or without a place."""
        return pooled in self._open

    # What makes connections out of date.

    def set_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set the arguments for opening spares. (Other connects get their arguments from asyncpg's pool.)"""
        self._arguments = args, kwargs
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """From now on, treat spares that were begun earlier as stale."""
        self._epoch += 1

    def expire_all(self) -> None:
        """Let the next acquire or release close each connection that was begun before now."""
        self.begin_epoch()
        self._expired_epoch = self._epoch
        self.distrust()

    def is_expired(self, pooled: PooledConnection) -> bool:
        return pooled.epoch < self._expired_epoch

    def distrust(self) -> None:
        """Have each connection checked before it is handed out next time."""
        for pooled in self:
            pooled.trusted_until = -math.inf

    def is_superseded(self, pooled: PooledConnection) -> bool:
        """Whether it was opened with outdated credentials."""
        return self.maker.is_superseded(pooled.attempt)

    def is_spoilt(self, spare: PooledConnection) -> bool:
        """Whether a spare can no longer be used."""
        is_stale = spare.con.is_closed() or spare.epoch < self._epoch or self.is_superseded(spare)
        return is_stale or self._would_be_replaced(spare)

    def _would_be_replaced(self, spare: PooledConnection) -> bool:
        """Whether its lease ends so soon that it would have to be replaced right away."""
        end = self.maker.ends_at(spare.attempt)
        return self._loop.time() > end - lease_margin(end - spare.born) and self.maker.lasts_until() > end

    def expire_superseded(self) -> list[PooledConnection]:
        """Make the connections of superseded credentials due. Those that are still being opened become due later.

        Returns all that are still open, including those that are being closed.
        """
        self._drained_at = now = self._loop.time()
        superseded = [pooled for pooled in self._open if self.is_superseded(pooled)]
        for pooled in superseded:
            pooled.expire("superseded", now)
        return superseded

    # How a connection begins.

    async def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Open a connection that has no place yet. If a user's ``connect=`` returns something else, return that."""
        epoch, begun = self._epoch, self._loop.time()
        self._make_room()
        self._logins += 1
        try:
            made = await self.maker.connect(args, kwargs)
            con: Any = made.con
            if not isinstance(con, asyncpg.Connection):
                return con
            watch = watch_writer(con, made.session_attribute, begun) if self._guards_writers else None
            await self._complete(con)
        finally:
            self._logins -= 1
        self.last_opened = now = self._loop.time()
        if self._next_opened is not None:
            self._next_opened.set_result(None)
            self._next_opened = None
        deadline = self.lifetime.deadline(now)
        stand_in = stand_in_for(con, partial(_said_goodbye, weakref.ref(self)))
        pooled = PooledConnection(
            con, made.attempt, epoch, now, deadline, busy_check(con), stand_in, watch, idle_since=now
        )
        pooled.doubt(self._doubted_at)  # has an effect if the doubt arose during the login
        self._open.add(pooled)
        con.add_termination_listener(partial(_ended, weakref.ref(self), pooled))
        pooled.rest(pooled.is_busy())
        return pooled

    async def open_spare(self) -> PooledConnection:
        """Open a connection for the next place that needs one. The default timeout is :data:`CONNECT_TIMEOUT`."""
        args, kwargs = self._arguments
        limited = {**kwargs, **self._constants, "timeout": kwargs.get("timeout") or CONNECT_TIMEOUT}
        opened = await self.open(args, limited)
        if not isinstance(opened, PooledConnection):
            raise asyncpg.InterfaceError(f"connect= returned a {type(opened).__name__}, which is not a connection")
        if not isinstance(opened.con, self._constants["connection_class"]):
            opened.con.terminate()
            raise asyncpg.InterfaceError(f"connect= returned a {type(opened.con).__name__}, not the connection_class")
        return opened

    def next_opened(self) -> asyncio.Future[None]:
        """A future that is done when the next connection has been opened. It is shared, so do not cancel it."""
        if self._next_opened is None:
            self._next_opened = self._loop.create_future()
        return self._next_opened

    def adopt(self, pooled: PooledConnection) -> Any:
        """Note that a connection gets a place, unless it has just ended, which asyncpg will notice as well."""
        con = pooled.con
        if not isinstance(con, self._constants["connection_class"]):
            con.terminate()  # asyncpg will reject it
        if not con.is_closed():
            self.by_connection[con] = pooled
            if pooled.attempt.begun <= self._drained_at and self.is_superseded(pooled):
                pooled.expire("superseded", self._loop.time())
            self.on_begin(pooled)
        return con

    async def _complete(self, con: Any) -> None:
        try:
            if self._init is not None:
                async with asyncio.timeout(INIT_TIMEOUT):
                    await self._init(con)
            if con.is_closed():  # nothing would notice that later
                raise asyncpg.ConnectionDoesNotExistError("the connection was closed before it could be used")
        except BaseException:
            con.terminate()
            raise

    def _make_room(self) -> None:
        """If there is no room for a socket, terminate connections that are being closed gracefully."""
        for pooled in tuple(self._leaving.values()):
            if self.room >= 1:
                break
            self._terminate(pooled)

    # How a connection ends.

    def part_with(self, pooled: PooledConnection) -> None:
        """Close a connection that has lost its place, in the background."""
        self.by_connection.pop(pooled.con, None)
        self.close_later(pooled)
        self.on_end(pooled, False)

    def close_later(self, pooled: PooledConnection) -> None:
        """Close a connection gracefully in the background, or terminate it now if there are too many sockets."""
        if self.room < 0:
            self._terminate(pooled)
            return
        task = self._loop.create_task(_close(pooled.con), name=f"aiopqr-{self.maker.name}-close")
        self._leaving[task] = pooled
        task.add_done_callback(self._leaving.pop)

    async def wait_closed(self) -> None:
        """Wait until the connections that are being closed are closed."""
        while self._leaving:
            await asyncio.wait(tuple(self._leaving))

    def terminate(self) -> None:
        """Terminate all connections, with or without a place."""
        cancel(self._leaving)
        for pooled in tuple(self._open):
            self._terminate(pooled)

    def report_lost(self, when: str, exc: BaseException) -> None:
        """Report that a connection was found dead, unless the pool is closing: the user may have terminated it."""
        if self.is_closing:
            return
        self.lost += 1
        event = ConnectionLost(name=self.maker.name, when=when, error=describe(exc))
        self.maker.events.emit(event)

    def retire_read_only(self, pooled: PooledConnection, watch: WriterWatch, asked_at: float) -> None:
        """Close a connection whose server no longer accepts writes, according to a check that began at ``asked_at``.

        All other connections that were checked before that are in doubt now, including the spare.
        """
        since = watch.doubted_at if watch.is_doubted else asked_at
        self.not_writable += 1
        if since > self._doubted_at:
            if since > self._doubted_at + QUIET:
                self.maker.events.emit(NotWritable(name=self.maker.name, server=address_of(pooled.con)))
            self._doubted_at = since
            self.maker.check_roles()
            self.begin_epoch()
            for other in self._open:
                other.doubt(since)
        self.part_with(pooled)

    def closing_error(self) -> PoolClosing:
        return PoolClosing(f"{self.maker.name}: the pool is closing or closed")

    def wrong_loop_error(self) -> WrongLoop:
        return WrongLoop(
            f"{self.maker.name}: this pool belongs to the event loop and the process in which it was made. Make a pool "
            "for each loop and each process, or hand the work over with asyncio.run_coroutine_threadsafe()"
        )

    def _terminate(self, pooled: PooledConnection) -> None:
        pooled.con.terminate()
        self._open.discard(pooled)  # safe, since its socket is closed before anything else can be opened

    def _ended(self, pooled: PooledConnection) -> None:
        self._open.discard(pooled)
        self.on_end(pooled, self.by_connection.pop(pooled.con, None) is not None)


def _ended(ref: weakref.ref[Connections], pooled: PooledConnection, _connection: Any) -> None:
    if (connections := ref()) is not None:
        connections._ended(pooled)


def _said_goodbye(ref: weakref.ref[Connections], error: BaseException) -> None:
    if (connections := ref()) is not None:
        connections.distrust()
        connections.report_lost("idle", error)


async def _close(connection: Any) -> None:
    """Close a connection gracefully. If that fails, asyncpg has terminated it."""
    try:
        await connection.close(timeout=CLOSE_TIMEOUT)
    except Exception:
        logger.debug("a connection could not be closed gracefully", exc_info=True)
