"""The connections of one pool: how they are opened, what is known of each, and what ends them."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import asyncpg

from .._connect import CONNECT_TIMEOUT, Connector
from ..clock import cancel
from ..errors import PoolClosing
from ._asyncpg import busy_check
from .connection import Lifetime, PooledConnection


class Connections:
    """All open connections of a pool, but for the spare.

    ``constants`` are what each connect gets beside the arguments that :meth:`set_arguments` may change: the loop and
    the classes. ``init`` is the user's own.
    """

    def __init__(
        self,
        connector: Connector,
        lifetime: Lifetime,
        constants: dict[str, Any],
        init: Callable[[Any], Awaitable[None]] | None,
    ) -> None:
        self.connector = connector
        self.lifetime = lifetime
        self.is_closing = False
        self.on_begin: Callable[[PooledConnection], None] = lambda _: None
        self.on_end: Callable[[PooledConnection], None] = lambda _: None
        self._constants = constants
        self._loop: asyncio.AbstractEventLoop = constants["loop"]
        self._init = init
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._epoch = 0
        self._drained_at = -math.inf
        self.by_connection: dict[Any, PooledConnection] = {}
        self._opening: set[asyncio.Task[Any]] = set()

    def __iter__(self) -> Iterator[PooledConnection]:
        return iter(self.by_connection.values())

    def __len__(self) -> int:
        return len(self.by_connection)

    def __contains__(self, pooled: PooledConnection) -> bool:
        return pooled.con in self.by_connection

    def set_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the spare connects with. (Other connects get their arguments from asyncpg's pool.)"""
        self._arguments = args, kwargs
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """From now on, a spare that was begun before is stale."""
        self._epoch += 1

    def is_of_this_epoch(self, pooled: PooledConnection) -> bool:
        return pooled.epoch == self._epoch

    def is_superseded(self, pooled: PooledConnection) -> bool:
        """Whether it was begun with credentials that are no longer the newest."""
        return self.connector.is_superseded(pooled.con)

    def is_spoilt(self, spare: PooledConnection) -> bool:
        """Whether a spare is of no use any more."""
        return spare.con.is_closed() or not self.is_of_this_epoch(spare) or self.is_superseded(spare)

    def expire_superseded(self) -> list[PooledConnection]:
        """Make the connections of superseded credentials due, and those that are under way when they come."""
        self._drained_at = now = self._loop.time()
        superseded = [pooled for pooled in self if self.is_superseded(pooled)]
        for pooled in superseded:
            pooled.expire("superseded", now)
        return superseded

    async def open_spare(self, timeout: float) -> PooledConnection:
        """A complete connection that is not one of the pool's yet."""
        args, kwargs = self._arguments
        shorter = min(timeout, kwargs.get("timeout") or CONNECT_TIMEOUT)
        async with asyncio.timeout(CONNECT_TIMEOUT):  # a hook that hangs would end all replacement in silence
            opened = await self._connect(args, {**kwargs, **self._constants, "timeout": shorter})
        if not isinstance(opened, PooledConnection):
            raise asyncpg.InterfaceError(f"connect= returned {type(opened).__name__}, which is no connection")
        return opened

    async def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A connection of the pool's, opened in a task of its own so that closing the pool can end it."""
        opening = asyncio.create_task(self._connect(args, kwargs), name=f"aiopqr-{self.connector.name}-connect")
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            opened = await opening
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                self._drop(opening.result())  # opened and cancelled in the same turn of the loop
            task = asyncio.current_task()
            if self.is_closing and not (task and task.cancelling()):
                raise self.closing_error() from None
            raise
        if self.is_closing:
            self._drop(opened)
            raise self.closing_error()
        return self.adopt(opened) if isinstance(opened, PooledConnection) else opened

    def adopt(self, pooled: PooledConnection) -> Any:
        """Make it one of the pool's, unless it has ended in this very turn of the loop: asyncpg finds that too."""
        if not pooled.con.is_closed():
            self.by_connection[pooled.con] = pooled
            if pooled.attempt and pooled.attempt.begun <= self._drained_at and self.is_superseded(pooled):
                pooled.expire("superseded", self._loop.time())
            self.on_begin(pooled)
        return pooled.con

    def _drop(self, opened: Any) -> None:
        if isinstance(opened, PooledConnection):
            opened.con.terminate()

    def cancel_openings(self) -> None:
        self.is_closing = True
        cancel(self._opening)

    async def wait_openings(self) -> None:
        if self._opening:
            await asyncio.wait(self._opening)

    def closing_error(self) -> PoolClosing:
        return PoolClosing(f"{self.connector.name}: the pool is closing or closed")

    async def _connect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        epoch = self._epoch
        con = await self.connector.connect(*args, **kwargs)
        if not isinstance(con, asyncpg.Connection):
            return con  # a user's connect= made it, and asyncpg says what is wrong with it
        if self._init is not None:
            try:
                await self._init(con)
            except BaseException:
                con.terminate()
                raise
        if con.is_closed():  # nobody would be told of its end any more
            raise asyncpg.ConnectionDoesNotExistError("the connection was closed before it could be used")
        now = self._loop.time()
        attempt = self.connector.attempt_of(con)
        deadline = self.lifetime.deadline(now)
        pooled = PooledConnection(con, attempt, epoch, now, deadline, busy_check(con), idle_since=now)
        con.add_termination_listener(partial(_ended, weakref.ref(self), pooled))
        return pooled

    def _end(self, pooled: PooledConnection) -> None:
        self.by_connection.pop(pooled.con, None)
        self.on_end(pooled)


def _ended(ref: weakref.ref[Connections], pooled: PooledConnection, _connection: Any) -> None:
    if connections := ref():
        connections._end(pooled)
