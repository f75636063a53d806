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

from ._asyncpg import is_cancelling, queries_run, raw_connection, reattach, release_without_waiting
from .errors import AcquireTimeout, describe
from .events import ConnectionLost, Emitter, LeakSuspected
from .lifetimes import Session
from .refusals import is_connection_lost
from .replacement import CLOSE_TIMEOUT, Replacement
from .sessions import Sessions
from .stats import Histogram
from .turnstile import Turnstile
from .watch import ResetWatch

CHECK_TIMEOUT = 5.0
Hook = Callable[[Any], Awaitable[None]]
UNSET: Any = object()


@dataclass(frozen=True, slots=True)
class Policy:
    """How connections are handed out and taken back. Times are in seconds."""

    acquire_timeout: float | None
    reset_timeout: float | None
    check_after: float
    leak_threshold: float
    full_reset: bool
    counts_queries: bool  # whether the connections are such that "nothing ran" can be known
    resets_as_asyncpg: bool  # whether their reset() is asyncpg's own
    may_close_on_release: bool  # asyncpg's max_queries is given
    setup: Hook | None
    reset: Hook | None


class Checkouts:
    """Hands out the connections of one pool. ``take`` and ``give`` are asyncpg's own acquire and release."""

    def __init__(
        self,
        policy: Policy,
        sessions: Sessions,
        replacement: Replacement,
        turnstile: Turnstile,
        events: Emitter,
        *,
        take: Callable[[], Awaitable[Any]],
        give: Callable[..., Awaitable[None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._policy = policy
        self._sessions = sessions
        self._open = sessions.by_connection
        self._replacement = replacement
        self._turnstile = turnstile
        self._events = events
        self._name = sessions.connector.name
        self._take = take
        self._give = give
        self._loop = loop
        self._watch = ResetWatch(policy.reset_timeout, loop)
        self._acquiring: dict[asyncio.Task[Any] | None, float | None] = {}  # whose connect has which deadline
        self._restoring = 0  # holders that asyncpg has taken out of its queue to connect them
        self._suspect_since = -math.inf  # what was idle then is checked before it is handed out
        self.acquired = 0
        self.timeouts = 0
        self.lost = 0
        self.wait_time = Histogram()
        self.use_time = Histogram()

    async def acquire(self, timeout: float | None) -> Any:
        loop, turnstile, policy, acquiring = self._loop, self._turnstile, self._policy, self._acquiring
        started = loop.time()
        limit = policy.acquire_timeout if timeout is UNSET else timeout
        deadline = None if limit is None else started + limit
        task = asyncio.current_task(loop)
        try:
            began = started
            if not turnstile.try_enter():
                await turnstile.enter(deadline)
                began = loop.time()
            try:
                while True:
                    acquiring[task] = deadline
                    if self._restoring:  # all that is free may be out of asyncpg's queue for a moment
                        async with asyncio.timeout_at(deadline):
                            connection = await self._take()
                    else:
                        connection = await self._take()
                    session = self._open.get(raw_connection(connection))
                    assert session is not None, "asyncpg's pool handed out a connection that it did not get from here"
                    session.is_idle = False
                    if not self._needs_check(session, began) or await self._is_alive(session, deadline):
                        break
                    began = loop.time()
                if policy.setup is not None:
                    await self._set_up(policy.setup, connection, session, deadline)
            except BaseException:
                turnstile.leave()
                raise
            finally:
                acquiring.pop(task, None)
        except TimeoutError as exc:
            if deadline is None or loop.time() < deadline:
                raise
            self.timeouts += 1
            raise self._too_late(started) from (self._sessions.connector.last_failure or exc.__cause__)
        now = loop.time()
        session.acquired_at = now
        if policy.counts_queries:
            session.queries = queries_run(session.con)
        session.release_timeout = None if timeout is UNSET else timeout
        session.holds_permit = True
        if policy.leak_threshold:
            stack = "".join(traceback.format_list(traceback.extract_stack(limit=12)[:-2]))
            session.leak_timer = loop.call_later(policy.leak_threshold, self._suspect_leak, session, stack)
        self.acquired += 1
        self.wait_time.record(now - started)
        return connection

    async def _set_up(self, setup: Hook, connection: Any, session: Session, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await setup(connection)
        except BaseException:
            session.con.terminate()
            reattach(connection, session.con)
            raise

    def _needs_check(self, session: Session, began: float) -> bool:
        """Whether it was idle for long, or beside one that was found dead. One opened for this acquire was neither."""
        idle_since = session.idle_since
        return idle_since < began - self._policy.check_after or idle_since <= self._suspect_since

    async def _is_alive(self, session: Session, deadline: float | None) -> bool:
        """Check a connection; a dead one is dropped, and whatever was idle beside it is suspect."""
        limit = self._loop.time() + CHECK_TIMEOUT
        try:
            async with asyncio.timeout_at(limit if deadline is None else min(limit, deadline)):
                await session.con.execute("select 1")  # asyncpg fails on an empty query
        except Exception as exc:
            session.con.terminate()
            self._suspect_since = self._loop.time()
            self._tell_lost("idle", exc)
            return False
        except BaseException:
            session.con.terminate()
            raise
        return True

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """What asyncpg's pool connects with: the spare, or a new connection, for an acquirer within its deadline."""
        task = asyncio.current_task()
        deadline = self._acquiring.get(task, UNSET)
        restoring = deadline is UNSET
        if restoring:
            deadline = None
            self._restoring += 1
        try:
            spare = self._replacement.take_spare()
            if spare is not None:
                is_fresh = self._loop.time() - spare.born <= self._policy.check_after
                if is_fresh or await self._is_alive(spare, deadline):
                    con = self._sessions.adopt(spare)
                    spare.idle_since = self._loop.time()
                    self._replacement.born(spare)
                    return con
            async with asyncio.timeout_at(deadline):
                con = await self._sessions.open(args, kwargs)
            if session := self._open.get(con):
                self._replacement.born(session)
            return con
        finally:
            if restoring:
                self._restoring -= 1

    async def release(self, connection: Any, timeout: float | None) -> None:
        con = raw_connection(connection)
        session = self._open.get(con)
        if session is None or not session.holds_permit:
            await self._give(connection, timeout=timeout)
            return
        policy = self._policy
        if policy.reset is None and self._replacement.is_ready and session.is_due(self._loop.time()):
            self._replacement.retire_released(session, connection)
            return
        session.needs_reset = policy.full_reset and not (policy.counts_queries and queries_run(con) == session.queries)
        if timeout is None:
            timeout = session.release_timeout
        try:
            if timeout is not None:
                await self._give(connection, timeout=timeout)
            elif self._has_to_wait(session):
                self._watch.begin(session)
                await self._give(connection)
            else:
                await release_without_waiting(connection)
        except Exception as exc:
            if session.is_overdue:
                raise TimeoutError(f"{self._name}: a release took longer than {policy.reset_timeout} s") from exc
            if not is_connection_lost(exc):
                raise
            con.terminate()
            self._tell_lost("release", exc)

    def _has_to_wait(self, session: Session) -> bool:
        """Whether the server has a part in the release."""
        policy, con = self._policy, session.con
        return (
            session.needs_reset
            or policy.reset is not None
            or policy.may_close_on_release
            or con.is_in_transaction()
            or is_cancelling(con)
            or not self._sessions.is_of_this_epoch(session)
        )

    async def reset(self, con: Any) -> None:
        """What asyncpg's pool calls in a release, after it has rolled back what was open.

        If this closes the connection, that must be its last await: closing puts the holder back into asyncpg's queue,
        and after a further await asyncpg would release the next task's checkout.
        """
        session = self._open.get(con)
        if self._policy.reset is not None:
            await self._policy.reset(con)
            if session and session.is_due(self._loop.time()) and self._replacement.is_ready and not con.is_closed():
                self._replacement.claim(session)
                await con.close(timeout=CLOSE_TIMEOUT)
                return
        elif session is None or (session.needs_reset and not self._policy.resets_as_asyncpg):
            await con.reset()
        elif session.needs_reset and (query := con.get_reset_query()):
            await con.execute(query)  # what else con.reset() does, asyncpg has just done
        if session is not None and not con.is_closed():
            now = self._loop.time()
            session.is_idle = True
            session.idle_since = now
            self.give_back(session, now)
            if session.deadline <= now:
                self._replacement.wake()

    def give_back(self, session: Session, now: float) -> None:
        """Return the permit of a checkout, if it has not been yet."""
        if session.holds_permit:
            session.holds_permit = False
            self._watch.end(session)
            if session.leak_timer is not None:
                session.leak_timer.cancel()
                session.leak_timer = None
            self.use_time.record(now - session.acquired_at)
            self._turnstile.leave()

    def _suspect_leak(self, session: Session, stack: str) -> None:
        held = self._loop.time() - session.acquired_at
        self._events.emit(LeakSuspected(name=self._name, held=held, stack=stack))

    def _tell_lost(self, when: str, exc: BaseException) -> None:
        self.lost += 1
        self._events.emit(ConnectionLost(name=self._name, when=when, error=describe(exc)))

    def _too_late(self, started: float) -> AcquireTimeout:
        idle = sum(session.is_idle for session in self._sessions)
        failure = self._sessions.connector.last_failure
        return AcquireTimeout(
            f"{self._name}: no connection within {self._loop.time() - started:.1f} s: {len(self._sessions)} open of at "
            f"most {self._turnstile.permits}, {idle} idle, {self._turnstile.waiting} waiting"
            + (f"; the last connect failed: {describe(failure)}" if failure else "")
        )
