"""Takes connections back: decides what has to be reset, resets it, and passes the connection to the next acquirer.

Together with ``acquire``, this is the hot path. The two share only the record of a checkout. Each checkout holds one of
the waiters' permits, and returns it exactly once: when its connection is released, or ends before that.
"""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import Any

import asyncpg

from ..clock import cancel, clock_of, current_task
from ..errors import describe
from ..events import Emitter, ResetFailed
from ..refusals import is_connection_lost, refuses_writes
from ..stats import Histogram
from ._asyncpg import (
    detach,
    free,
    has_transaction,
    queries_run,
    raw_connection,
    release_in_task,
    release_now,
)
from .connection import Checkout, PooledConnection
from .connections import CLOSE_TIMEOUT, Connections
from .policy import Hook, Policy
from .replacement import Replacement
from .supply import Supply
from .timers import IdleTimer, ReleaseTimer
from .waiters import Waiters

logger = logging.getLogger("aiopqr")

# The result of a reset, for a caller that waits for it: None, or what went wrong.
Confirmed = asyncio.Future[BaseException | None] | None

_asyncpg_release = asyncpg.Pool.release


class Releases:
    """Takes back the connections of one pool."""

    def __init__(
        self,
        policy: Policy,
        connections: Connections,
        replacement: Replacement,
        supply: Supply,
        waiters: Waiters,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._policy = policy
        self._connections = connections
        self._open = connections.by_connection
        self._replacement = replacement
        self._supply = supply
        self._waiters = waiters
        self._events: Emitter = connections.maker.events
        self._name = connections.maker.name
        self._now = clock_of(loop)
        self._loop = loop
        self._release_timer = ReleaseTimer(policy.reset_timeout, connections, loop)
        idle_limit = policy.idle_limit if policy.floor < waiters.permits else math.inf
        self._idle_timer = IdleTimer(idle_limit, policy.floor, connections, loop)
        self._tasks: set[asyncio.Task[Any]] = set()  # releases by asyncpg
        self.use_time = Histogram()

    def joined(self, pooled: PooledConnection) -> None:
        """Called when a connection has been added to the pool. It is idle, like one that was released."""
        self._idle_timer.begin(pooled)

    def stop(self) -> None:
        """Stop the timers, and the releases that are still in progress. Call this when no connections are left."""
        self._release_timer.stop()
        self._idle_timer.stop()
        cancel(self._tasks - {current_task()})

    async def wait_closed(self) -> None:
        """Wait until the releases have ended."""
        if tasks := self._tasks - {current_task()}:
            await asyncio.wait(tasks)

    def failed_with(self, connection: Any, exc: BaseException) -> None:
        """Note that a block that used a connection has raised ``exc``. Call this before the release."""
        pooled = self._open.get(raw_connection(connection))
        if pooled is not None and refuses_writes(exc):
            pooled.doubt(self._now())

    async def release(self, connection: Any, timeout: float | None) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise self._connections.wrong_loop_error()
        con = raw_connection(connection)
        pooled = self._open.get(con)
        checkout = pooled.checkout if pooled is not None else None
        if pooled is None or checkout is None:
            await _asyncpg_release(self._supply.pool, connection, timeout=timeout)  # raises the right error
            return
        if checkout.is_releasing:
            return  # another task is releasing it; a second release could hit the next user's checkout
        checkout.is_releasing = True
        policy = self._policy
        has_run, may_run = True, True
        if policy.counts_queries:
            runs = queries_run(con)
            has_run = runs != checkout.queries
            may_run = has_run and not pooled.has_answered(runs, checkout.queries)
        busy = pooled.is_busy(may_run) is not False
        checkout.needs_reset = policy.full_reset and (has_run or busy)
        if timeout is None and not policy.defers_reset:
            timeout = checkout.release_timeout
        if timeout is not None or busy or self._has_to_wait(pooled):
            await self._release_by_asyncpg(connection, pooled, checkout, timeout)
        elif not checkout.needs_reset:
            release_now(connection)
            self._take_back(pooled)
        elif query := self._quick_reset_query(pooled):
            confirmed = None if policy.defers_reset else self._loop.create_future()
            self._begin_reset(connection, pooled, checkout, query, confirmed)
            if confirmed is not None and (error := await confirmed) is not None:
                self._fail_release(pooled, checkout, error)
        else:
            await self._release_by_asyncpg(connection, pooled, checkout, timeout)

    def _quick_reset_query(self, pooled: PooledConnection) -> str:
        """The query that resets a session, if it can bypass asyncpg; empty if asyncpg has to reset it."""
        stand_in = pooled.stand_in
        if self._policy.resets_as_asyncpg and stand_in is not None and stand_in.is_possible:
            try:
                return pooled.con.get_reset_query()  # type: ignore[no-any-return]
            except Exception:
                logger.debug("get_reset_query() failed; asyncpg's reset will raise it", exc_info=True)
        return ""

    def _has_to_wait(self, pooled: PooledConnection) -> bool:
        """Whether releasing a connection involves waiting, even if it is not busy and need not be reset."""
        policy, con = self._policy, pooled.con
        return (
            policy.reset is not None
            or policy.may_close_on_release
            or self._connections.is_closing
            or con.is_closed()
            or has_transaction(con)
            or self._connections.is_expired(pooled)
        )

    async def _release_by_asyncpg(
        self, connection: Any, pooled: PooledConnection, checkout: Checkout, timeout: float | None
    ) -> None:
        """Let asyncpg release it, with :meth:`reset` as its hook. Cancelling this does not stop the release."""
        if timeout is None:
            self._release_timer.begin(checkout)
        checkout.keeps_place = True
        on_free = partial(self._was_released, pooled, checkout)
        releasing = release_in_task(connection, timeout, f"aiopqr-{self._name}-release", on_free)
        self._tasks.add(releasing)
        releasing.add_done_callback(self._tasks.discard)
        try:
            # Not shield(): since Python 3.14, it logs errors that come after the caller was cancelled.
            await asyncio.wait((releasing,))
            if not (releasing.cancelled() and self._connections.is_closing):  # by terminate()
                releasing.result()
        except asyncio.CancelledError:
            releasing.add_done_callback(partial(self._released_after_cancel, pooled, checkout))
            raise
        except Exception as exc:
            self._fail_release(pooled, checkout, exc)

    def _was_released(self, pooled: PooledConnection, checkout: Checkout) -> None:
        """Called when asyncpg has released a connection, or has closed it, and its place is free."""
        checkout.keeps_place = False
        if pooled.con.is_closed():
            self.give_back(pooled, self._now())
            self._supply.dispatch_soon()
        else:
            self._take_back(pooled, pooled.is_busy())

    def _begin_reset(
        self, connection: Any, pooled: PooledConnection, checkout: Checkout, query: str, confirmed: Confirmed
    ) -> None:
        """Let the stand-in reset the session. The place and the permit stay taken until the server has confirmed it.

        This needs no task, since the stand-in calls back. So cancelling the release does not stop the reset.
        """
        assert pooled.stand_in is not None
        place = detach(connection)
        if checkout.leak_timer is not None:
            checkout.leak_timer.cancel()
        self._release_timer.begin(checkout)
        if confirmed is None:
            self._supply.resetting += 1
        pooled.stand_in.reset(query, partial(self._was_reset, pooled, checkout, place, confirmed))

    def _was_reset(
        self,
        pooled: PooledConnection,
        checkout: Checkout,
        place: Any,
        confirmed: Confirmed,
        error: BaseException | None,
    ) -> None:
        """Called when the server has reset a session, or when its connection was closed because of ``error``."""
        if confirmed is None:
            self._supply.resetting -= 1
        if error is None:
            free(place)
            self._take_back(pooled)
        else:
            self._supply.dispatch_soon()
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(error)
        elif error is not None:
            self._report_release(pooled, checkout, error)

    def _fail_release(self, pooled: PooledConnection, checkout: Checkout, exc: BaseException) -> None:
        """Raise the error, if any, that ``release()`` should raise after a failed reset."""
        if checkout.is_overdue:
            raise TimeoutError(self._too_slow()) from exc
        if not self._is_loss(pooled, exc):
            raise exc

    def _report_release(self, pooled: PooledConnection, checkout: Checkout, exc: BaseException) -> None:
        """Report a failed reset as an event, since no caller is waiting for it."""
        if checkout.is_overdue:
            self._events.emit(ResetFailed(name=self._name, error=self._too_slow()))
        elif not self._is_loss(pooled, exc):
            self._events.emit(ResetFailed(name=self._name, error=describe(exc)))

    def _too_slow(self) -> str:
        return f"{self._name}: a release took longer than {self._policy.reset_timeout} s"

    def _released_after_cancel(
        self, pooled: PooledConnection, checkout: Checkout, releasing: asyncio.Task[None]
    ) -> None:
        """Called when a release has ended whose caller was cancelled."""
        if not releasing.cancelled() and (error := releasing.exception()) is not None:
            self._report_release(pooled, checkout, error)

    def _is_loss(self, pooled: PooledConnection, exc: BaseException) -> bool:
        """Whether the connection was lost. That is reported, but it is not an error of the release."""
        if not is_connection_lost(exc):
            return False
        pooled.con.terminate()
        self._connections.report_lost("being released", exc)
        return True

    async def reset(self, con: Any) -> None:
        """The hook that asyncpg's pool calls during a release, after it has rolled back any open transaction."""
        pooled = self._open.get(con)
        checkout = pooled.checkout if pooled is not None else None
        needs_reset = checkout is None or checkout.needs_reset
        if self._policy.reset is not None or not needs_reset:
            await self._refuse_busy(con, pooled)
        if self._policy.reset is not None:
            await self._reset_by_user(self._policy.reset, con, checkout)
        elif needs_reset and self._policy.resets_as_asyncpg:
            if query := con.get_reset_query():
                await con.execute(query)  # asyncpg has just done everything else that con.reset() does
        elif needs_reset:
            await con.reset()
        if self._connections.is_closing:
            await con.close(timeout=CLOSE_TIMEOUT)

    async def _refuse_busy(self, con: Any, pooled: PooledConnection | None) -> None:
        """Raise if a query is running on the connection. By now, a cancelled query has ended."""
        is_busy = pooled.is_busy() if pooled is not None else False
        if is_busy:
            raise asyncpg.InterfaceError("cannot release the connection: another operation is in progress")
        if is_busy is None:
            await con.execute("select 1")  # asyncpg refuses it if the connection is busy

    async def _reset_by_user(self, reset: Hook, con: Any, checkout: Checkout | None) -> None:
        # The release timer could not end this: the hook may be waiting for something other than the connection.
        limit = math.inf
        if checkout is not None:
            limit, checkout.release_by = checkout.release_by, math.inf
        try:
            async with asyncio.timeout_at(None if limit == math.inf else limit) as timer:
                await reset(con)
        except TimeoutError:
            if checkout is not None and timer.expired():
                checkout.is_overdue = True
            raise
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException:  # asyncpg would neither close the connection nor free its place
            con.terminate()
            raise

    def _take_back(self, pooled: PooledConnection, is_busy: bool | None = False) -> None:
        """Make a connection idle, and end its checkout. If it is due, the spare takes its place before anybody gets it.

        The swap must wait until the server has confirmed a reset: before that, the session may hold its user's locks.
        """
        pooled.rest(is_busy)
        pooled.idle_since = now = self._now()
        pooled.trusted_until = now + self._policy.check_after
        if pooled.watch is not None and pooled.watch.look(now):
            pooled.trusted_until = -math.inf
            self._loop.call_soon(self._supply.check_doubted)
        self.give_back(pooled, now)
        self._idle_timer.begin(pooled)
        if pooled.deadline <= now and (self._replacement.spare is None or not self._replacement.swap(pooled)):
            self._replacement.wake()
        if self._supply.waiting:
            self._supply.dispatch_soon()

    def ended(self, pooled: PooledConnection) -> None:
        """Called when a connection has ended. Its permit is returned together with its place."""
        if pooled.checkout is None or not pooled.checkout.keeps_place:
            self.give_back(pooled, self._now())

    def give_back(self, pooled: PooledConnection, now: float) -> None:
        """End the checkout of a connection, if it has one, and return its permit."""
        checkout, pooled.checkout = pooled.checkout, None
        if checkout is not None:
            if checkout.leak_timer is not None:
                checkout.leak_timer.cancel()
            self.use_time.record(now - checkout.acquired_at)
            self._waiters.leave()
