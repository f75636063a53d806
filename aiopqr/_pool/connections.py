"""The connections of one pool: how they begin, what is known of each, and how they end.

A pool has at most ``max_size`` places, and never more than one socket beyond that, logins and connections that are
being closed included.
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

INIT_TIMEOUT = 60.0  # a hook that hangs would keep its place for good
CLOSE_TIMEOUT = 1.0  # for the server to take leave, too
QUIET = 1.0  # between two reports of the same change of role
_LEASE_MARGIN = 30.0


def lease_margin(left: float) -> float:
    """How many seconds before the end of a lease its connections are replaced, if ``left`` seconds are left of it."""
    return min(_LEASE_MARGIN, left / 2)


class Connections:
    """The connections that have a place in the pool; iterate over it for them. It knows of the others, too.

    ``constants`` are what each connect gets besides the arguments that :meth:`set_arguments` may change: the loop and
    the classes. ``init`` is the user's own. ``on_begin`` is called when a connection gets a place, and ``on_end`` when
    it has lost its place or its socket, with True where it had its place until its socket was closed.
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
        self.not_writable = 0  # closed, because their server takes no writes any more
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
        self._logins = 0  # under way
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
        """Whether its socket is still open, in the pool or on its way out."""
        return pooled in self._open

    # What makes connections out of date.

    def set_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the spare connects with. (Other connects get their arguments from asyncpg's pool.)"""
        self._arguments = args, kwargs
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """From now on, a spare that was begun before is stale."""
        self._epoch += 1

    def expire_all(self) -> None:
        """From now on, a connection that was begun before is to be closed by its next acquire or release."""
        self.begin_epoch()
        self._expired_epoch = self._epoch
        self.distrust()

    def is_expired(self, pooled: PooledConnection) -> bool:
        return pooled.epoch < self._expired_epoch

    def distrust(self) -> None:
        """From now on, a connection that is idle is looked at before it is handed out."""
        for pooled in self:
            pooled.trusted_until = -math.inf

    def is_superseded(self, pooled: PooledConnection) -> bool:
        """Whether it was begun with credentials that are no longer the newest."""
        return self.maker.is_superseded(pooled.attempt)

    def is_spoilt(self, spare: PooledConnection) -> bool:
        """Whether a spare is of no use any more."""
        is_stale = spare.con.is_closed() or spare.epoch < self._epoch or self.is_superseded(spare)
        return is_stale or self._would_be_replaced(spare)

    def _would_be_replaced(self, spare: PooledConnection) -> bool:
        """Whether its lease ends so soon that it would be replaced as soon as it is in use."""
        end = self.maker.ends_at(spare.attempt)
        return self._loop.time() > end - lease_margin(end - spare.born) and self.maker.lasts_until() > end

    def expire_superseded(self) -> list[PooledConnection]:
        """Make the connections of superseded credentials due, and those that are under way when they come.

        Returns all that are still open, those included that are being closed.
        """
        self._drained_at = now = self._loop.time()
        superseded = [pooled for pooled in self._open if self.is_superseded(pooled)]
        for pooled in superseded:
            pooled.expire("superseded", now)
        return superseded

    # How a connection begins.

    async def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A complete connection that has no place yet. What a user's ``connect=`` made is returned as it is."""
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
        pooled.doubt(self._doubted_at)  # if it has arisen meanwhile
        self._open.add(pooled)
        con.add_termination_listener(partial(_ended, weakref.ref(self), pooled))
        pooled.rest(pooled.is_busy())
        return pooled

    async def open_spare(self) -> PooledConnection:
        """A connection for whatever place needs it next. It has :data:`CONNECT_TIMEOUT` where users set no limit."""
        args, kwargs = self._arguments
        limited = {**kwargs, **self._constants, "timeout": kwargs.get("timeout") or CONNECT_TIMEOUT}
        opened = await self.open(args, limited)
        if not isinstance(opened, PooledConnection):
            raise asyncpg.InterfaceError(f"connect= returned {type(opened).__name__}, which is no connection")
        if not isinstance(opened.con, self._constants["connection_class"]):
            opened.con.terminate()
            raise asyncpg.InterfaceError(f"connect= returned {type(opened.con).__name__}, not its connection_class")
        return opened

    def next_opened(self) -> asyncio.Future[None]:
        """Done when the next connection has been opened. It is shared: do not cancel it."""
        if self._next_opened is None:
            self._next_opened = self._loop.create_future()
        return self._next_opened

    def adopt(self, pooled: PooledConnection) -> Any:
        """Give it a place, unless it has ended in this very turn of the loop, which asyncpg finds too."""
        con = pooled.con
        if not isinstance(con, self._constants["connection_class"]):
            con.terminate()  # asyncpg refuses it
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
            if con.is_closed():  # its end would no longer be noticed
                raise asyncpg.ConnectionDoesNotExistError("the connection was closed before it could be used")
        except BaseException:
            con.terminate()
            raise

    def _make_room(self) -> None:
        """Whoever wants a connection comes before one that is leaving."""
        for pooled in tuple(self._leaving.values()):
            if self.room >= 1:
                break
            self._terminate(pooled)

    # How a connection ends.

    def part_with(self, pooled: PooledConnection) -> None:
        """It has lost its place: close it in the background."""
        self.by_connection.pop(pooled.con, None)
        self.close_later(pooled)
        self.on_end(pooled, False)

    def close_later(self, pooled: PooledConnection) -> None:
        """Close a connection in the background, or at once where its socket is one too many."""
        if self.room < 0:
            self._terminate(pooled)
            return
        task = self._loop.create_task(_close(pooled.con), name=f"aiopqr-{self.maker.name}-close")
        self._leaving[task] = pooled
        task.add_done_callback(self._leaving.pop)

    async def wait_closed(self) -> None:
        """Wait for those that are being closed."""
        while self._leaving:
            await asyncio.wait(tuple(self._leaving))

    def terminate(self) -> None:
        """End all at once, with or without a place."""
        cancel(self._leaving)
        for pooled in tuple(self._open):
            self._terminate(pooled)

    def report_lost(self, when: str, exc: BaseException) -> None:
        """A connection was found dead."""
        self.lost += 1
        event = ConnectionLost(name=self.maker.name, when=when, error=describe(exc))
        self.maker.events.emit(event)

    def retire_read_only(self, pooled: PooledConnection, watch: WriterWatch, asked_at: float) -> None:
        """A question that was asked at ``asked_at`` has found that its server takes no writes: close it.

        All that were asked before that are in doubt now, the spare included.
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
            f"{self.maker.name}: this pool belongs to the event loop, and the process, in which it was made. Make one "
            "for each loop and each process, or hand the work over with asyncio.run_coroutine_threadsafe()"
        )

    def _terminate(self, pooled: PooledConnection) -> None:
        pooled.con.terminate()
        self._open.discard(pooled)  # its socket is closed before anything else is opened

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
    """A connection that is on its way out may fail to say goodbye: asyncpg has dropped it then."""
    try:
        await connection.close(timeout=CLOSE_TIMEOUT)
    except Exception:
        logger.debug("a connection could not be closed gracefully", exc_info=True)
