"""Supplies connections to waiting acquirers: it opens new ones, and checks those that were idle.

It does so in *jobs*. A job is a task that takes a place out of asyncpg's queue, and returns it with or without a
connection. A job belongs to the pool, not to the acquirer that caused it: if the acquirer gives up, the job continues
and serves the next one. Acquirers are served in order, with whatever becomes ready first, from a job or a release. So
acquirers get connections even if they never wait long enough for a connect.

There is one exception to the order, as in asyncpg's pool: for a moment, an acquirer that has caused a connect waits for
that connection only, and the others take what is released. So a burst of acquires opens as many connections as it can
use.

asyncpg itself restores ``min_size`` in the background, also by :meth:`Supply.connect`.
"""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from typing import Any

import asyncpg

from ..clock import cancel, clock_of, current_task, wait_until
from ._asyncpg import connection_of, next_place, put_back, restore_floor, restores_floor, vacate
from .checks import SILENCE, Checks
from .connection import PooledConnection
from .connections import Connections
from .policy import Policy
from .replacement import Replacement

OWN_FIRST = 0.25  # for this many seconds, an acquirer that has caused a connect waits for that connection only
SHORT_LIFE = 5.0  # a connection that is lost sooner does not count as a success
BACKOFF_FIRST = 0.5
BACKOFF_MAX = 30.0


class Supply:
    """The jobs of one pool, and the acquirers that wait for them."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        policy: Policy,
        connections: Connections,
        replacement: Replacement,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.pool = pool
        self._connections = connections
        self._open = connections.by_connection
        self._replacement = replacement
        self._loop = loop
        self._now = clock_of(loop)
        self._name = connections.maker.name
        self._check_after = policy.check_after
        self._checks = Checks(connections, replacement, loop, on_read_only=self.check_doubted)
        self.waiting: dict[asyncio.Future[Any], None] = {}  # acquirers that wait for a connection, in order
        self._jobs: dict[asyncio.Task[None], asyncio.Future[Any] | None] = {}  # each with the acquirer that caused it
        # Acquirers that wait only for the connection of their own job, each with the timer that ends this.
        self._waiting_for_own: dict[asyncio.Future[Any], asyncio.TimerHandle] = {}
        self.resetting = 0  # connections in a deferred reset, which will be ready in a moment
        self._connects: set[asyncio.Task[Any]] = set()  # tasks that are connecting: jobs, or asyncpg opening the pool
        self._is_started = False
        self._short_lives = 0
        self._floor_not_before = -math.inf
        self._is_short = asyncio.Event()  # set if an acquirer needs the place for which `_restore` waits

    # For acquirers.

    def take_ready(self, now: float) -> Any:
        """Take a place whose connection can be used without a check, or return None. Serve waiting acquirers first."""
        if (place := next_place(self.pool)) is None:
            return None
        pooled = self._open.get(connection_of(place))
        is_trusted = pooled is not None and pooled.trusted_until >= now and not self._connections.is_expired(pooled)
        if pooled is not None and is_trusted and not pooled.con.is_closed():
            return place
        put_back(place)
        return None

    async def wait(self, deadline: float | None) -> Any:
        """Wait for a place with a connection. Raises ``TimeoutError`` at ``deadline``, and what a connect raised."""
        while True:
            place = await self._next_ready(deadline)
            pooled = self._open.get(connection_of(place))
            if pooled is not None and not pooled.con.is_closed() and not self._connections.is_expired(pooled):
                return place
            self._put_back(place)  # before this task could run, its connection has ended or was expired

    async def _next_ready(self, deadline: float | None) -> Any:
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self.waiting[waiter] = None
        self.dispatch()
        patience = self._loop.call_later(SILENCE, self.dispatch, False) if self.resetting else None
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException:
            self.waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._ready(waiter.result())  # this was handed over and cancelled in the same loop iteration
            raise
        finally:
            if patience is not None:
                patience.cancel()

    def dispatch(self, is_patient: bool = True) -> None:
        """Serve waiting acquirers with what is ready, and begin jobs for the others while there are places.

        With ``is_patient``, connections in a deferred reset count as coming soon, so fewer jobs are begun.
        """
        coming = self.resetting if is_patient else 0
        while (waiter := self._next_waiter()) and (place := self.take_ready(self._now())):
            self._hand_over(place, waiter)
        while len(self._jobs) + coming < len(self.waiting) and (place := next_place(self.pool)):
            served = set(self._jobs.values())
            self._begin(place, next(waiter for waiter in self.waiting if waiter not in served))
        if len(self._jobs) + coming < len(self.waiting):
            self._is_short.set()
        # Meanwhile, check idle connections. That costs acquirers nothing, and saves the next ones the check.
        while len(self._jobs) < len(self.waiting) and (place := next_place(self.pool)):
            if connection_of(place) not in self._open:
                put_back(place)
                break
            self._begin(place, None)

    def dispatch_soon(self) -> None:
        """Dispatch in the next loop iteration, when the place that is being returned now is in the queue."""
        self._loop.call_soon(self.dispatch)

    def check_doubted(self) -> None:
        """Begin a check of each idle connection that is in doubt, without waiting for an acquirer."""
        places = list(iter(lambda: next_place(self.pool), None)) if self._is_started else []
        for place in reversed(places):
            pooled = self._open.get(connection_of(place))
            if pooled is not None and pooled.watch is not None and pooled.watch.is_doubted:
                self._begin(place, None)
            else:
                put_back(place)

    def start(self) -> None:
        """Called when the pool has been opened."""
        self._is_started = True
        restore_floor(self.pool)

    def ended(self, pooled: PooledConnection, was_lost: bool) -> None:
        """Called when a connection has ended. If it ``was_lost`` early in its life, do not replace it in a hurry.

        That is only necessary if nobody was using it. Otherwise its user or its release may have closed it, which
        cannot happen more often than acquires. Of the idle connections, the pool itself closes only a surplus.
        """
        now = self._now()
        if now - pooled.born >= SHORT_LIFE:
            self._short_lives = 0
        elif (
            was_lost
            and pooled.is_idle
            and not pooled.is_surplus
            and pooled.born >= self._floor_not_before  # so connections that end together count once
            and self.pool.get_size() < self.pool.get_min_size()
        ):
            self._back_off(now)
        if self._is_started:
            restore_floor(self.pool)
        self.dispatch()

    def close(self) -> None:
        """Turn away the waiting acquirers, and cancel the jobs."""
        self._is_started = False
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_exception(self._connections.closing_error())
        self.waiting.clear()
        cancel({*self._jobs, *self._connects} - {current_task()})

    async def wait_closed(self) -> None:
        """Wait until the jobs have ended."""
        if tasks := {*self._jobs, *self._connects} - {current_task()}:
            await asyncio.wait(tasks)

    # The connect= of asyncpg's pool, called in a job or while the pool is being opened.

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Return the spare or a new connection."""
        if restores_floor(self.pool):
            return await self._restore(args, kwargs)
        return await self._connect(args, kwargs)

    async def _restore(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Connect to restore ``min_size``, but not in a hurry if connections do not last, unless somebody waits.

        asyncpg has taken a place out of its queue for this, so acquirers cannot use that place in the meantime.
        """
        try:
            self._is_short.clear()
            if self._now() < self._floor_not_before and len(self._jobs) >= len(self.waiting):
                await wait_until(self._floor_not_before, self._is_short)
            return await self._connect(args, kwargs)
        finally:
            self.dispatch_soon()  # asyncpg is about to put the place back, and would not notify waiting acquirers

    async def _connect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        spare = self._replacement.take_spare()
        pooled: Any = spare or await self._open_for_place(args, kwargs)
        is_stale = spare is not None and self._now() - spare.born > self._check_after
        if (is_stale or _is_doubted(pooled)) and not await self._checks.is_alive_at_rest(pooled):
            pooled = await self._open_for_place(args, kwargs)
        if not isinstance(pooled, PooledConnection):
            return pooled
        pooled.idle_since = now = self._now()
        pooled.trusted_until = now + self._check_after
        return self._connections.adopt(pooled)

    async def _open_for_place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._connects.add(task)
        try:
            return await self._connections.open(args, kwargs)
        finally:
            self._connects.discard(task)

    # The jobs.

    def _begin(self, place: Any, owner: asyncio.Future[Any] | None) -> None:
        what = "check" if owner is None else "connect"
        job = self._loop.create_task(self._fill(place, owner is not None), name=f"aiopqr-{self._name}-{what}")
        self._jobs[job] = owner
        if owner is not None:
            self._waiting_for_own[owner] = self._loop.call_later(OWN_FIRST, self._accept_any, owner)
        job.add_done_callback(partial(self._finished, place))

    async def _fill(self, place: Any, is_wanted: bool) -> None:
        """Check the connection of a place, or open one for it if somebody wants it."""
        con = connection_of(place)
        pooled = self._open.get(con)
        if pooled is not None and not con.is_closed():
            if self._connections.is_expired(pooled):
                self._connections.part_with(pooled)
            else:
                pooled.lend()
                begun = self._now()
                if await self._checks.is_alive(pooled):
                    pooled.idle_since = now = self._now()
                    pooled.trusted_until = now + self._check_after
                    pooled.listen(pooled.is_busy())
                    return
                if self._now() - begun < SILENCE:
                    is_wanted = False  # another idle connection may be alive, and quicker to get than a new one
        vacate(place)
        if is_wanted:
            await place.connect()

    def _finished(self, place: Any, job: asyncio.Task[None]) -> None:
        owner = self._jobs.pop(job)
        if owner is not None and (timer := self._waiting_for_own.pop(owner, None)):
            timer.cancel()
        pooled = self._open.get(connection_of(place))
        if pooled is not None:
            self._ready(place)
        else:
            put_back(place)
        error = asyncio.CancelledError() if job.cancelled() else job.exception()
        if error is not None and owner is not None and owner in self.waiting and not self._has_idle():
            del self.waiting[owner]
            if not owner.done():
                owner.set_exception(error)
        self.dispatch()
        if self._is_started:
            restore_floor(self.pool)

    def _has_idle(self) -> bool:
        """Whether a connection is idle, so that :meth:`dispatch` will hand it out or begin a check of it."""
        if (place := next_place(self.pool)) is None:
            return False
        put_back(place)
        return connection_of(place) in self._open

    def _ready(self, place: Any) -> None:
        """Hand a place with a usable connection to the acquirer that has waited longest."""
        if waiter := self._next_waiter():
            self._hand_over(place, waiter)
        else:
            self._put_back(place)

    def _put_back(self, place: Any) -> None:
        """Return a place whose connection, if it has one, was in use or reserved."""
        pooled = self._open.get(connection_of(place))
        if pooled is not None:
            pooled.rest(pooled.is_busy())
        put_back(place)

    def _accept_any(self, waiter: asyncio.Future[Any]) -> None:
        """Let an acquirer take any connection from now on, because its own takes longer than expected."""
        del self._waiting_for_own[waiter]
        self.dispatch()

    def _next_waiter(self) -> asyncio.Future[Any] | None:
        """The next acquirer in line, skipping those whose own connection should be ready in a moment."""
        for waiter in tuple(self.waiting):
            if waiter.done():
                del self.waiting[waiter]
            elif waiter not in self._waiting_for_own:
                return waiter
        return None

    def _hand_over(self, place: Any, waiter: asyncio.Future[Any]) -> None:
        del self.waiting[waiter]
        pooled = self._open.get(connection_of(place))
        if pooled is not None:
            pooled.reserve()
        waiter.set_result(place)

    def _back_off(self, now: float) -> None:
        pause = random.uniform(0.5, 1.0) * min(BACKOFF_FIRST * 2 ** min(self._short_lives, 10), BACKOFF_MAX)
        self._short_lives += 1
        self._floor_not_before = now + pause


def _is_doubted(opened: Any) -> bool:
    """Whether its server may have stopped accepting writes while it was being opened."""
    return isinstance(opened, PooledConnection) and opened.watch is not None and opened.watch.is_doubted
