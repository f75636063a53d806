"""Acquire and release: what happens to a connection between asyncpg's pool and the one who uses it.

This is the path of every query, so it counts rather than tells, and arms a timer only where it has to wait. A permit
of the turnstile belongs to one checkout, and is given back once: by the release, or by the connection's end before.
"""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

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
from .errors import AcquireTimeout, describe
from .events import ConnectionLost, Emitter, LeakSuspected
from .lifetimes import Session
from .refusals import is_connection_lost
from .replacement import CLOSE_TIMEOUT, Replacement
from .sessions import Sessions
from .stats import Histogram
from .tasks import TICK, clock_of
from .turnstile import Turnstile
from .watch import IdleWatch, ReleaseWatch

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
        sessions: Sessions,
        replacement: Replacement,
        turnstile: Turnstile,
        events: Emitter,
        *,
        acquire: Callable[[], Awaitable[Any]],
        release: Callable[..., Awaitable[None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._policy = policy
        self._sessions = sessions
        self._open = sessions.by_connection
        self._replacement = replacement
        self._turnstile = turnstile
        self._events = events
        self._name = sessions.connector.name
        self._pool = pool
        self._acquire = acquire
        self._release = release
        self._now = clock_of(loop)
        self._loop = loop
        self._release_watch = ReleaseWatch(policy.reset_timeout, sessions, loop)
        self._idle_watch = IdleWatch(policy.idle_limit, policy.floor, sessions, loop)
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
        policy, turnstile, now = self._policy, self._turnstile, self._now
        started = began = now()
        limit = policy.acquire_timeout if timeout is UNSET else timeout
        deadline = None if limit is None else started + limit
        try:
            if not turnstile.try_enter():
                await turnstile.enter(deadline)
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
                    session = self._open[connection_of(connection)]
                    session.is_idle = False
                    # It may be idle for long, or since before another was found dead; or it was just opened for this.
                    idle_since = session.idle_since
                    if idle_since >= began - policy.check_after and idle_since > self._suspect_since:
                        break
                    if idle_since >= began or await self._is_alive(session, deadline):
                        break
                    began = now()
                if policy.counts_queries:
                    session.queries = queries_run(session.con)  # before setup=: what it changed is to be reset too
                if policy.setup is not None:
                    await self._set_up(policy.setup, connection, session, deadline)
            except BaseException:
                turnstile.leave()
                raise
        except TimeoutError as exc:
            if deadline is None or now() < deadline - TICK:
                raise
            self.timeouts += 1
            raise self._too_late(started) from (self._sessions.connector.last_failure or exc.__cause__)
        session.acquired_at = acquired_at = now()
        session.release_timeout = None if timeout is UNSET else timeout
        session.holds_permit = True
        session.is_releasing = False
        if policy.leak_threshold:
            stack = "".join(traceback.format_list(traceback.extract_stack(limit=12)[:-2]))
            session.leak_timer = self._loop.call_later(policy.leak_threshold, self._suspect_leak, session, stack)
        self.acquired += 1
        self.wait_time.record(acquired_at - started)
        return connection

    async def _set_up(self, setup: Hook, connection: Any, session: Session, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await setup(connection)
            if connection_of(connection) is None:  # its place is free again, so the permit must not be held either
                raise asyncpg.ConnectionDoesNotExistError("the connection was closed during setup=")
        except BaseException:
            session.con.terminate()
            reattach(connection, session.con)
            raise

    async def _is_alive(self, session: Session, deadline: float | None) -> bool:
        """Check a connection; a dead one is dropped, and whatever was idle beside it is suspect."""
        limit = self._now() + CHECK_TIMEOUT
        try:
            async with asyncio.timeout_at(limit if deadline is None else min(limit, deadline)):
                await session.con.execute("select 1")  # asyncpg fails on an empty query
        except Exception as exc:
            session.con.terminate()
            self._suspect_since = self._now()
            self._tell_lost("idle", exc)
            return False
        except BaseException:
            session.con.terminate()
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
                return self._adopted(self._sessions.adopt(spare))
        async with asyncio.timeout_at(deadline):
            return self._adopted(await self._sessions.open(args, kwargs))

    def _adopted(self, con: Any) -> Any:
        if session := self._open.get(con):
            self._replacement.born(session)
            self._idle_watch.begin(session)
        return con

    async def release(self, connection: Any, timeout: float | None) -> None:
        con = raw_connection(connection)
        session = self._open.get(con)
        if session is None or not session.holds_permit:
            await self._release(connection, timeout=timeout)
            return
        if session.is_releasing:
            return  # by another task, and a second time it would be the next one's
        session.is_releasing = True
        policy = self._policy
        replacement = self._replacement
        if (
            replacement.spare is not None
            and replacement.is_ready
            and policy.reset is None
            and session.is_due(self._now())
        ):
            replacement.retire_released(session)
            return
        has_run = not policy.counts_queries or queries_run(con) != session.queries
        busy = not (policy.full_reset and has_run) and session.is_busy()  # a reset finds that by itself
        session.needs_reset = policy.full_reset and (has_run or busy)
        if timeout is None:
            timeout = session.release_timeout
        try:
            if timeout is not None:
                await self._release(connection, timeout=timeout)
            elif busy or session.needs_reset or self._has_to_wait(session):
                self._release_watch.begin(session)
                await give(connection)
            else:
                give_at_once(connection)
                self._take_back(session)
        except Exception as exc:
            if session.is_overdue:
                raise TimeoutError(f"{self._name}: a release took longer than {policy.reset_timeout} s") from exc
            if not is_connection_lost(exc):
                raise
            con.terminate()
            self._tell_lost("release", exc)

    def _has_to_wait(self, session: Session) -> bool:
        """Whether the server has a part in the release of a connection that is not busy and need not be reset."""
        policy, con = self._policy, session.con
        return (
            policy.reset is not None
            or policy.may_close_on_release
            or self._sessions.is_closing
            or con.is_closed()
            or has_transaction(con)
            or not self._sessions.is_of_this_epoch(session)
        )

    async def reset(self, con: Any) -> None:
        """What asyncpg's pool calls in a release, after it has rolled back what was open.

        If this closes the connection, that must be its last await: closing puts the holder back into asyncpg's queue,
        and after a further await asyncpg would release the next task's checkout.
        """
        session = self._open.get(con)
        asks_the_server = self._policy.reset is None and (session is None or session.needs_reset)
        if session is not None and not asks_the_server and session.is_busy():  # what was cancelled has ended by now
            raise asyncpg.InterfaceError("cannot release the connection: another operation is in progress")
        if self._policy.reset is not None:
            await self._reset_by_user(self._policy.reset, con, session)
            if con.is_closed():
                return
            if session and session.is_due(self._now()) and self._replacement.is_ready:
                self._replacement.claim(session)
                await con.close(timeout=CLOSE_TIMEOUT)
                return
        elif session is None or (session.needs_reset and not self._policy.resets_as_asyncpg):
            await con.reset()
        elif session.needs_reset and (query := con.get_reset_query()):
            await con.execute(query)  # what else con.reset() does, asyncpg has just done
        if self._sessions.is_closing:
            await con.close(timeout=CLOSE_TIMEOUT)
        elif session is not None:
            self._take_back(session)

    async def _reset_by_user(self, reset: Hook, con: Any, session: Session | None) -> None:
        # Not by the watch: whoever waits for something else would go on, and asyncpg then with the next one's checkout.
        limit = math.inf
        if session is not None:
            limit, session.release_by = session.release_by, math.inf
        try:
            async with asyncio.timeout_at(None if limit == math.inf else limit) as timer:
                await reset(con)
        except TimeoutError:
            if session is not None and timer.expired():
                session.is_overdue = True
            raise

    def _take_back(self, session: Session) -> None:
        """It is idle from now on."""
        now = self._now()
        session.is_idle = True
        session.idle_since = now
        self.give_back(session, now)
        self._idle_watch.begin(session)
        if session.deadline <= now:
            self._replacement.wake()

    def give_back(self, session: Session, now: float) -> None:
        """Return the permit of a checkout, if it has not been yet."""
        if session.holds_permit:
            session.holds_permit = False
            session.release_by = math.inf
            if session.leak_timer is not None:
                session.leak_timer.cancel()
                session.leak_timer = None
            self.use_time.record(now - session.acquired_at)
            self._turnstile.leave()

    def _suspect_leak(self, session: Session, stack: str) -> None:
        held = self._now() - session.acquired_at
        self._events.emit(LeakSuspected(name=self._name, held=held, stack=stack))

    def _tell_lost(self, when: str, exc: BaseException) -> None:
        self.lost += 1
        self._events.emit(ConnectionLost(name=self._name, when=when, error=describe(exc)))

    def _too_late(self, started: float) -> AcquireTimeout:
        idle = sum(session.is_idle for session in self._sessions)
        failure = self._sessions.connector.last_failure
        return AcquireTimeout(
            f"{self._name}: no connection within {self._now() - started:.1f} s: {len(self._sessions)} open of at "
            f"most {self._turnstile.permits}, {idle} idle, {self._turnstile.waiting} waiting"
            + (f"; the last connect failed: {describe(failure)}" if failure else "")
        )
