"""Hands out connections: an acquirer waits for a permit and for a connection.

Together with ``release``, this is the hot path, so it increments counters instead of emitting events, and only arms a
timer if it has to wait.
"""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import Any

import asyncpg

from ..clock import TICK, clock_of
from ..errors import AcquireTimeout, describe
from ..events import Emitter, LeakSuspected
from ..stats import Histogram
from ._asyncpg import connection_of, hand_out, queries_run, reattach
from .connection import Checkout, PooledConnection
from .connections import Connections
from .policy import Hook, Policy
from .supply import Supply
from .waiters import Waiters


class _Unset:
    def __repr__(self) -> str:
        return "acquire_timeout"


UNSET: Any = _Unset()  # since None means no limit
_OWN_FILES = str(Path(__file__).parent)


class Acquires:
    """Hands out the connections of one pool."""

    def __init__(
        self,
        policy: Policy,
        connections: Connections,
        supply: Supply,
        waiters: Waiters,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._policy = policy
        self._connections = connections
        self._open = connections.by_connection
        self._supply = supply
        self._waiters = waiters
        self._events: Emitter = connections.maker.events
        self._name = connections.maker.name
        self._now = clock_of(loop)
        self._loop = loop
        self.acquired = 0
        self.timeouts = 0
        self.failed = 0  # how many of the timeouts were caused by a failed connect
        self.wait_time = Histogram()

    async def acquire(self, timeout: float | None) -> Any:
        if asyncio.get_running_loop() is not self._loop:
            raise self._connections.wrong_loop_error()
        policy, waiters, supply = self._policy, self._waiters, self._supply
        started = now = self._now()
        limit = policy.acquire_timeout if timeout is UNSET else timeout
        deadline = None if limit is None else started + limit
        try:
            if not waiters.try_enter():
                await waiters.enter(deadline)
                now = self._now()
            try:
                place = None if supply.waiting else supply.take_ready(now)
                if place is None:
                    place = await supply.wait(deadline)
                    now = self._now()
                pooled = self._open[connection_of(place)]
                pooled.lend()
                connection = hand_out(place)
                queries = queries_run(pooled.con) if policy.counts_queries else None
                if policy.setup is not None:  # after `queries` was read, so that its changes will be reset too
                    await self._set_up(policy.setup, connection, pooled, deadline)
                    now = self._now()
            except BaseException:
                waiters.leave()
                raise
        except TimeoutError as exc:
            if deadline is None or self._now() < deadline - TICK:
                raise
            failure = self._connections.maker.last_failure
            raise self._too_late(started, failure) from (failure or exc.__cause__)
        pooled.checkout = checkout = Checkout(now, queries, None if timeout is UNSET else timeout)
        if policy.leak_threshold:
            self._watch_for_leak(pooled, checkout)
        self.acquired += 1
        self.wait_time.record(now - started)
        return connection

    async def _set_up(self, setup: Hook, connection: Any, pooled: PooledConnection, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await setup(connection)
            if connection_of(connection) is None:  # its place is free again, so the permit must be returned too
                raise asyncpg.ConnectionDoesNotExistError("the connection was closed during setup=")
        except BaseException:
            pooled.con.terminate()
            reattach(connection, pooled.con)
            raise

    def _watch_for_leak(self, pooled: PooledConnection, checkout: Checkout) -> None:
        stack = traceback.StackSummary.extract(traceback.walk_stack(None), limit=16, lookup_lines=False)
        stack.reverse()
        while stack and stack[-1].filename.startswith(_OWN_FILES):
            stack.pop()
        checkout.leak_timer = self._loop.call_later(
            self._policy.leak_threshold, self._suspect_leak, checkout.acquired_at, stack
        )

    def _suspect_leak(self, acquired_at: float, stack: traceback.StackSummary) -> None:
        held = self._now() - acquired_at
        self._events.emit(LeakSuspected(name=self._name, held=held, stack="".join(stack.format())))

    def _too_late(self, started: float, failure: BaseException | None) -> AcquireTimeout:
        self.timeouts += 1
        idle = sum(pooled.is_idle for pooled in self._connections)
        self.failed += failure is not None
        return AcquireTimeout(
            f"{self._name}: no connection within {self._now() - started:.1f} s: {len(self._connections)} open of at "
            f"most {self._waiters.permits}, {idle} idle, {self.waiting} waiting"
            + (f"; the last connect failed: {describe(failure)}" if failure else "")
        )

    @property
    def waiting(self) -> int:
        """How many tasks are waiting in ``acquire()``."""
        return self._waiters.waiting + len(self._supply.waiting)
