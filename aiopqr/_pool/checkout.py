"""Acquire and release: what happens to a connection between asyncpg's pool and the one who uses it.

This is the path of every query, so it counts rather than tells, and arms a timer only where it has to wait. A permit
of the waiters belongs to one checkout, and is given back once: by the release, or by the connection's end before.
"""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from ..clock import TICK, clock_of
from ..errors import AcquireTimeout, describe
from ..events import ConnectionLost, Emitter, LeakSuspected
from ..refusals import is_connection_lost
from ..stats import Histogram
from ._asyncpg import (
    connection_of,
    give,
    give_at_once,
    has_transaction,
    next_holder,
    put_back,
    queries_run,
    raw_connection,
    reattach,
)
from .connection import PooledConnection
from .connections import Connections
from .replacement import CLOSE_TIMEOUT, Replacement
from .timers import IdleTimer, ReleaseTimer
from .waiters import Waiters

CHECK_TIMEOUT = 5.0
Hook = Callable[[Any], Awaitable[None]]
UNSET: Any = object()


@dataclass(frozen=True, slots=True)
class Policy:
    """How connections are handed out and taken back. Times are in seconds."""

    acquire_timeout: float | None
    reset_timeout: float
    idle_limit: float
    floor: int
    check_after: float
    leak_threshold: float
    full_reset: bool
    counts_queries: bool  # whether the connections are such that "nothing ran" can be known
    resets_as_asyncpg: bool  # whether their reset() is asyncpg's own
    may_close_on_release: bool  # asyncpg's max_queries is given
    setup: Hook | None
    reset: Hook | None


class Checkouts:
    """Hands out the connections of one pool. ``acquire`` and ``release`` are asyncpg's own."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        policy: Policy,
        connections: Connections,
        replacement: Replacement,
        waiters: Waiters,
        events: Emitter,
        *,
        acquire: Callable[[], Awaitable[Any]],
        release: Callable[..., Awaitable[None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._policy = policy
        self._connections = connections
        self._open = connections.by_connection
        self._replacement = replacement
        self._waiters = waiters
        self._events = events
        self._name = connections.connector.name
        self._pool = pool
        self._acquire = acquire
        self._release = release
        self._now = clock_of(loop)
        self._loop = loop
        self._release_watch = ReleaseTimer(policy.reset_timeout, connections, loop)
        self._idle_watch = IdleTimer(policy.idle_limit, policy.floor, connections, loop)
        self._deadline: float | None = UNSET
        self._suspect_since = -math.inf  # what was idle then is checked before it is handed out
        self.acquired = 0
        self.timeouts = 0
        self.lost = 0
        self.wait_time = Histogram()
        self.use_time = Histogram()

    def stop(self) -> None:
        """No connection is left to look after."""
        self._release_watch.stop()
        self._idle_watch.stop()

    async def acquire(self, timeout: float | None) -> Any:
        policy, waiters, now = self._policy, self._waiters, self._now
        started = began = now()
        limit = policy.acquire_timeout if timeout is UNSET else timeout
        deadline = None if limit is None else started + limit
        try:
            if not waiters.try_enter():
                await waiters.enter(deadline)
                began = now()
            try:
                while True:
                    if holder := next_holder(self._pool):
                        self._deadline = deadline  # for connect(), which asyncpg calls before it suspends, if at all
                        try:
                            connection = await holder.acquire()
                        except BaseException:
                            put_back(self._pool, holder)
                            raise
                        finally:
                            self._deadline = UNSET
                    else:  # asyncpg is restoring what is free to its floor
                        async with asyncio.timeout_at(deadline):
                            connection = await self._acquire()
                        if connection_of(connection) not in self._open:
                            continue  # it has ended before this task came to run
                    pooled = self._open[connection_of(connection)]
                    pooled.is_idle = False
                    # It may be idle for long, or since before another was found dead; or it was just opened for this.
                    idle_since = pooled.idle_since
                    if idle_since >= began - policy.check_after and idle_since > self._suspect_since:
                        break
                    if idle_since >= began or await self._is_alive(pooled, deadline):
                        break
                    began = now()
                if policy.counts_queries:
                    pooled.queries = queries_run(pooled.con)  # before setup=: what it changed is to be reset too
                if policy.setup is not None:
                    await self._set_up(policy.setup, connection, pooled, deadline)
            except BaseException:
                waiters.leave()
                raise
        except TimeoutError as exc:
            if deadline is None or now() < deadline - TICK:
                raise
            self.timeouts += 1
            raise self._too_late(started) from (self._connections.connector.last_failure or exc.__cause__)
        pooled.acquired_at = acquired_at = now()
        pooled.release_timeout = None if timeout is UNSET else timeout
        pooled.holds_permit = True
        pooled.is_releasing = False
        if policy.leak_threshold:
            stack = "".join(traceback.format_list(traceback.extract_stack(limit=12)[:-2]))
            pooled.leak_timer = self._loop.call_later(policy.leak_threshold, self._suspect_leak, pooled, stack)
        self.acquired += 1
        self.wait_time.record(acquired_at - started)
        return connection

    async def _set_up(self, setup: Hook, connection: Any, pooled: PooledConnection, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await setup(connection)
            if connection_of(connection) is None:  # its place is free again, so the permit must not be held either
                raise asyncpg.ConnectionDoesNotExistError("the connection was closed during setup=")
        except BaseException:
            pooled.con.terminate()
            reattach(connection, pooled.con)
            raise

    async def _is_alive(self, pooled: PooledConnection, deadline: float | None) -> bool:
        """Check a connection; a dead one is dropped, and whatever was idle beside it is suspect."""
        limit = self._now() + CHECK_TIMEOUT
        try:
            async with asyncio.timeout_at(limit if deadline is None else min(limit, deadline)):
                await pooled.con.execute("select 1")  # asyncpg fails on an empty query
        except Exception as exc:
            pooled.con.terminate()
            self._suspect_since = self._now()
            self._tell_lost("idle", exc)
            return False
        except BaseException:
            pooled.con.terminate()
            raise
        return True

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """What asyncpg's pool connects with: the spare, or a new connection. For an acquirer, within its deadline."""
        deadline, self._deadline = self._deadline, UNSET
        if deadline is UNSET:
            deadline = None  # asyncpg fills or restores its floor, or the acquirer has a timer already
        spare = self._replacement.take_spare()
        if spare is not None:
            is_fresh = self._now() - spare.born <= self._policy.check_after
            if is_fresh or await self._is_alive(spare, deadline):
                spare.idle_since = self._now()
                return self._adopted(self._connections.adopt(spare))
        async with asyncio.timeout_at(deadline):
            return self._adopted(await self._connections.open(args, kwargs))

    def _adopted(self, con: Any) -> Any:
        if pooled := self._open.get(con):
            self._replacement.born(pooled)
            self._idle_watch.begin(pooled)
        return con

    async def release(self, connection: Any, timeout: float | None) -> None:
        con = raw_connection(connection)
        pooled = self._open.get(con)
        if pooled is None or not pooled.holds_permit:
            await self._release(connection, timeout=timeout)
            return
        if pooled.is_releasing:
            return  # by another task, and a second time it would be the next one's
        pooled.is_releasing = True
        policy = self._policy
        replacement = self._replacement
        if (
            replacement.spare is not None
            and replacement.is_ready
            and policy.reset is None
            and pooled.is_due(self._now())
        ):
            replacement.retire_released(pooled)
            return
        has_run = not policy.counts_queries or queries_run(con) != pooled.queries
        busy = not (policy.full_reset and has_run) and pooled.is_busy()  # a reset finds that by itself
        pooled.needs_reset = policy.full_reset and (has_run or busy)
        if timeout is None:
            timeout = pooled.release_timeout
        try:
            if timeout is not None:
                await self._release(connection, timeout=timeout)
            elif busy or pooled.needs_reset or self._has_to_wait(pooled):
                self._release_watch.begin(pooled)
                await give(connection)
            else:
                give_at_once(connection)
                self._take_back(pooled)
        except Exception as exc:
            if pooled.is_overdue:
                raise TimeoutError(f"{self._name}: a release took longer than {policy.reset_timeout} s") from exc
            if not is_connection_lost(exc):
                raise
            con.terminate()
            self._tell_lost("release", exc)

    def _has_to_wait(self, pooled: PooledConnection) -> bool:
        """Whether the server has a part in the release of a connection that is not busy and need not be reset."""
        policy, con = self._policy, pooled.con
        return (
            policy.reset is not None
            or policy.may_close_on_release
            or self._connections.is_closing
            or con.is_closed()
            or has_transaction(con)
            or not self._connections.is_of_this_epoch(pooled)
        )

    async def reset(self, con: Any) -> None:
        """What asyncpg's pool calls in a release, after it has rolled back what was open.

        If this closes the connection, that must be its last await: closing puts the holder back into asyncpg's queue,
        and after a further await asyncpg would release the next task's checkout.
        """
        pooled = self._open.get(con)
        asks_the_server = self._policy.reset is None and (pooled is None or pooled.needs_reset)
        if pooled is not None and not asks_the_server and pooled.is_busy():  # what was cancelled has ended by now
            raise asyncpg.InterfaceError("cannot release the connection: another operation is in progress")
        if self._policy.reset is not None:
            await self._reset_by_user(self._policy.reset, con, pooled)
            if con.is_closed():
                return
            if pooled and pooled.is_due(self._now()) and self._replacement.is_ready:
                self._replacement.claim(pooled)
                await con.close(timeout=CLOSE_TIMEOUT)
                return
        elif pooled is None or (pooled.needs_reset and not self._policy.resets_as_asyncpg):
            await con.reset()
        elif pooled.needs_reset and (query := con.get_reset_query()):
            await con.execute(query)  # what else con.reset() does, asyncpg has just done
        if self._connections.is_closing:
            await con.close(timeout=CLOSE_TIMEOUT)
        elif pooled is not None:
            self._take_back(pooled)

    async def _reset_by_user(self, reset: Hook, con: Any, pooled: PooledConnection | None) -> None:
        # Not by the watch: whoever waits for something else would go on, and asyncpg then with the next one's checkout.
        limit = math.inf
        if pooled is not None:
            limit, pooled.release_by = pooled.release_by, math.inf
        try:
            async with asyncio.timeout_at(None if limit == math.inf else limit) as timer:
                await reset(con)
        except TimeoutError:
            if pooled is not None and timer.expired():
                pooled.is_overdue = True
            raise

    def _take_back(self, pooled: PooledConnection) -> None:
        """It is idle from now on."""
        now = self._now()
        pooled.is_idle = True
        pooled.idle_since = now
        self.give_back(pooled, now)
        self._idle_watch.begin(pooled)
        if pooled.deadline <= now:
            self._replacement.wake()

    def give_back(self, pooled: PooledConnection, now: float) -> None:
        """Return the permit of a checkout, if it has not been yet."""
        if pooled.holds_permit:
            pooled.holds_permit = False
            pooled.release_by = math.inf
            if pooled.leak_timer is not None:
                pooled.leak_timer.cancel()
                pooled.leak_timer = None
            self.use_time.record(now - pooled.acquired_at)
            self._waiters.leave()

    def _suspect_leak(self, pooled: PooledConnection, stack: str) -> None:
        held = self._now() - pooled.acquired_at
        self._events.emit(LeakSuspected(name=self._name, held=held, stack=stack))

    def _tell_lost(self, when: str, exc: BaseException) -> None:
        self.lost += 1
        self._events.emit(ConnectionLost(name=self._name, when=when, error=describe(exc)))

    def _too_late(self, started: float) -> AcquireTimeout:
        idle = sum(pooled.is_idle for pooled in self._connections)
        failure = self._connections.connector.last_failure
        return AcquireTimeout(
            f"{self._name}: no connection within {self._now() - started:.1f} s: {len(self._connections)} open of at "
            f"most {self._waiters.permits}, {idle} idle, {self._waiters.waiting} waiting"
            + (f"; the last connect failed: {describe(failure)}" if failure else "")
        )
