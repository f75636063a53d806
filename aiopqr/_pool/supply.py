"""Brings connections to those who wait for one: opens new ones, and has those that were idle checked.

Each of these is a *job*: a task of the pool's own that has taken one place out of asyncpg's queue, and returns it with
or without a connection. A job belongs to the pool, not to whoever caused it. An acquirer that gives up leaves the job
running, and its connection serves the next one. An acquirer that waits takes whatever becomes ready first, from any job
or release, first come, first served. So acquires that are shorter than a connect are served all the same.

asyncpg itself restores ``min_size`` in the background, through the same :meth:`Supply.connect`.
"""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from typing import Any

import asyncpg

from ..clock import cancel, clock_of, wait_until
from ._asyncpg import connection_of, next_place, put_back, restore_floor, restores_floor, vacate
from .checks import SILENCE, Checks
from .connection import PooledConnection
from .connections import Connections
from .policy import Policy
from .replacement import Replacement

OWN_FIRST = 0.25  # how long an acquirer waits for the connection that it has caused, rather than for any
SHORT_LIFE = 5.0  # a connection that ends earlier was no success
BACKOFF_FIRST = 0.5
BACKOFF_MAX = 30.0


class Supply:
    """The jobs of one pool, and who waits for them."""

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
        self.waiting: dict[asyncio.Future[Any], None] = {}  # for a place with a connection, in the order they came
        self._jobs: dict[asyncio.Task[None], asyncio.Future[Any] | None] = {}  # with whoever caused them
        self._hopeful: dict[asyncio.Future[Any], asyncio.TimerHandle] = {}  # whose own job is young; ends that
        self.resetting = 0  # connections that will be ready in a moment, without anybody's waiting for their reset
        self._connects: set[asyncio.Task[Any]] = set()  # jobs, and the tasks that open the pool
        self._is_started = False
        self._short_lives = 0
        self._floor_not_before = -math.inf

    # What an acquirer asks for.

    def take_ready(self, now: float) -> Any:
        """Take a place whose connection can be used as it is; None if there is none. Whoever waits comes first."""
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
            self._put_back(place)  # its connection has ended, or was expired, before this task came to run

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
                self._ready(waiter.result())  # handed over and cancelled in the same turn of the loop
            raise
        finally:
            if patience is not None:
                patience.cancel()

    def dispatch(self, is_patient: bool = True) -> None:
        """Hand over what is there, and begin a job for everyone else who waits, where there is a place for it.

        Who ``is_patient`` waits for the connections that are being reset: they will be there sooner than new ones.
        """
        coming = self.resetting if is_patient else 0
        while (waiter := self._next_waiter()) and (place := self.take_ready(self._now())):
            self._hand_over(place, waiter)
        while len(self._jobs) + coming < len(self.waiting) and (place := next_place(self.pool)):
            served = set(self._jobs.values())
            self._begin(place, next(waiter for waiter in self.waiting if waiter not in served))
        # Meanwhile, idle connections are checked. It costs the acquirer nothing, and the next ones need no check.
        while len(self._jobs) < len(self.waiting) and (place := next_place(self.pool)):
            if connection_of(place) not in self._open:
                put_back(place)
                break
            self._begin(place, None)

    def dispatch_soon(self) -> None:
        """Dispatch in the next loop iteration, when the place that is being returned now is in the queue."""
        self._loop.call_soon(self.dispatch)

    def check_doubted(self) -> None:
        """Ask the servers of all idle connections that are in doubt, without waiting for an acquirer."""
        places = list(iter(lambda: next_place(self.pool), None)) if self._is_started else []
        for place in reversed(places):
            pooled = self._open.get(connection_of(place))
            if pooled is not None and pooled.watch is not None and pooled.watch.is_doubted:
                self._begin(place, None)
            else:
                put_back(place)

    def start(self) -> None:
        """The pool is open."""
        self._is_started = True
        restore_floor(self.pool)

    def ended(self, pooled: PooledConnection, was_lost: bool) -> None:
        """A connection has ended. One that ``was_lost`` while it was young is no reason to hurry with another."""
        now = self._now()
        if now - pooled.born >= SHORT_LIFE:
            self._short_lives = 0
        elif was_lost and pooled.born >= self._floor_not_before:  # those that end together count once
            self._back_off(now)
        if self._is_started:
            restore_floor(self.pool)
        self.dispatch()

    def close(self) -> None:
        """Turn away everyone who waits, and cancel the jobs."""
        self._is_started = False
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_exception(self._connections.closing_error())
        self.waiting.clear()
        cancel({*self._jobs, *self._connects} - {_current_task()})

    async def wait_closed(self) -> None:
        """Wait for the end of the jobs."""
        if tasks := {*self._jobs, *self._connects} - {_current_task()}:
            await asyncio.wait(tasks)

    # What asyncpg's pool connects with, in a job, or when it is opened.

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """The spare, or a new connection."""
        if restores_floor(self.pool):
            return await self._restore(args, kwargs)
        return await self._connect(args, kwargs)

    async def _restore(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Connect for the floor: not in a hurry where connections do not last."""
        try:
            if self._now() < self._floor_not_before:
                await wait_until(self._floor_not_before, asyncio.Event())
            return await self._connect(args, kwargs)
        finally:
            self.dispatch_soon()  # asyncpg is about to put the place back, and would not notify anybody

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
            self._hopeful[owner] = self._loop.call_later(OWN_FIRST, self._lose_hope, owner)
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
                    is_wanted = False  # another idle one may still be alive, and quicker to get than a new one
        vacate(place)
        if is_wanted:
            await place.connect()

    def _finished(self, place: Any, job: asyncio.Task[None]) -> None:
        owner = self._jobs.pop(job)
        if owner is not None and (timer := self._hopeful.pop(owner, None)):
            timer.cancel()
        pooled = self._open.get(connection_of(place))
        if pooled is not None:
            self._ready(place)
        else:
            put_back(place)
        error = asyncio.CancelledError() if job.cancelled() else job.exception()
        if error is not None and owner is not None and owner in self.waiting:
            del self.waiting[owner]
            if not owner.done():
                owner.set_exception(error)
        self.dispatch()
        if self._is_started:
            restore_floor(self.pool)

    def _ready(self, place: Any) -> None:
        """A place with a connection that can be used: hand it to whoever waits longest."""
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

    def _lose_hope(self, waiter: asyncio.Future[Any]) -> None:
        """Its own connection is slower than was hoped: from now on it takes any."""
        del self._hopeful[waiter]
        self.dispatch()

    def _next_waiter(self) -> asyncio.Future[Any] | None:
        """Who is next, but for those whose own connection has just been begun: it will be there in a moment."""
        for waiter in tuple(self.waiting):
            if waiter.done():
                del self.waiting[waiter]
            elif waiter not in self._hopeful:
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
    """Whether its server may have ceased to take writes while it was being opened."""
    return isinstance(opened, PooledConnection) and opened.watch is not None and opened.watch.is_doubted


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # terminate() may be called where no loop runs
        return None
