"""The connections of one pool: how they are opened, what is known of each, and what ends them."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import asyncpg

from ._asyncpg import busy_check
from .connector import CONNECT_TIMEOUT, Connector
from .errors import PoolClosing
from .lifetimes import Lifetime, Session
from .tasks import cancel


class Sessions:
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
        self.on_end: Callable[[Session], None] = lambda _: None
        self._constants = constants
        self._loop: asyncio.AbstractEventLoop = constants["loop"]
        self._init = init
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._epoch = 0
        self._drained_at = -math.inf
        self.by_connection: dict[Any, Session] = {}
        self._opening: set[asyncio.Task[Any]] = set()

    def __iter__(self) -> Iterator[Session]:
        return iter(self.by_connection.values())

    def __len__(self) -> int:
        return len(self.by_connection)

    def __contains__(self, session: Session) -> bool:
        return session.con in self.by_connection

    def set_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the spare connects with. (Other connects get their arguments from asyncpg's pool.)"""
        self._arguments = args, kwargs
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """From now on, a spare that was begun before is stale."""
        self._epoch += 1

    def is_of_this_epoch(self, session: Session) -> bool:
        return session.epoch == self._epoch

    def is_superseded(self, session: Session) -> bool:
        """Whether it was begun with credentials that are no longer the newest."""
        return self.connector.is_superseded(session.con)

    def is_spoilt(self, spare: Session) -> bool:
        """Whether a spare is of no use any more."""
        return spare.con.is_closed() or not self.is_of_this_epoch(spare) or self.is_superseded(spare)

    def expire_superseded(self) -> list[Session]:
        """Make the connections of superseded credentials due, and those that are under way when they come."""
        self._drained_at = now = self._loop.time()
        superseded = [session for session in self if self.is_superseded(session)]
        for session in superseded:
            session.expire("superseded", now)
        return superseded

    async def open_spare(self, timeout: float) -> Session:
        """A complete connection that is not one of the pool's yet."""
        args, kwargs = self._arguments
        shorter = min(timeout, kwargs.get("timeout") or CONNECT_TIMEOUT)
        async with asyncio.timeout(CONNECT_TIMEOUT):  # a hook that hangs would end all replacement in silence
            opened = await self._connect(args, {**kwargs, **self._constants, "timeout": shorter})
        if not isinstance(opened, Session):
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
        return self.adopt(opened) if isinstance(opened, Session) else opened

    def adopt(self, session: Session) -> Any:
        """Make it one of the pool's, unless it has ended in this very turn of the loop: asyncpg finds that too."""
        if not session.con.is_closed():
            self.by_connection[session.con] = session
            if session.attempt and session.attempt.begun <= self._drained_at and self.is_superseded(session):
                session.expire("superseded", self._loop.time())
        return session.con

    def _drop(self, opened: Any) -> None:
        if isinstance(opened, Session):
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
        session = Session(con, attempt, epoch, now, deadline, busy_check(con), idle_since=now)
        con.add_termination_listener(partial(_ended, weakref.ref(self), session))
        return session

    def _end(self, session: Session) -> None:
        self.by_connection.pop(session.con, None)
        self.on_end(session)


def _ended(ref: weakref.ref[Sessions], session: Session, _connection: Any) -> None:
    if sessions := ref():
        sessions._end(session)
