"""Timers that terminate connections: one for releases that take too long, one for idle connections.

Each timer serves all connections of a pool. One timer per connection would cost more than everything else that this
library adds to an acquire and a release, because cancelled timers pile up in the event loop's heap until they are due.
That is why asyncpg's own timers for idle connections are off. They would also keep unused pools alive.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from abc import ABC, abstractmethod

from ..clock import TICK, clock_of
from .connection import Checkout, PooledConnection
from .connections import Connections


class _Timer(ABC):
    """Checks all connections when the first of them is due. Once armed, the timer serves later connections too."""

    def __init__(self, limit: float, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        self._limit = limit
        self._connections = weakref.ref(connections)  # an armed timer must not keep an unused pool alive
        self._loop = loop
        self._now = clock_of(loop)
        self._is_armed = limit == math.inf
        self._timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Stop watching."""
        self._is_armed = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, when: float) -> None:
        self._is_armed = True
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._is_armed = False
        if connections := self._connections():
            next_look = self._end_what_is_due(connections, self._now() + TICK)
            if next_look < math.inf:
                self._arm(next_look)

    @abstractmethod
    def _end_what_is_due(self, connections: Connections, now: float) -> float:
        """Terminate what is due. Returns when to look again, or ``inf`` if only :meth:`begin` makes that necessary."""


class ReleaseTimer(_Timer):
    """Terminates the connection of a release that takes longer than ``limit`` seconds."""

    def begin(self, checkout: Checkout) -> None:
        """Watch a release, until the checkout has ended or somebody resets its ``release_by``."""
        checkout.release_by = self._now() + self._limit
        if not self._is_armed:
            self._arm(checkout.release_by)

    def _end_what_is_due(self, connections: Connections, now: float) -> float:
        next_look = math.inf
        for pooled in tuple(connections):
            if (checkout := pooled.checkout) is None:
                continue
            if checkout.release_by <= now:
                checkout.is_overdue = True
                pooled.con.terminate()
            else:
                next_look = min(next_look, checkout.release_by)
        return next_look


class IdleTimer(_Timer):
    """Terminates connections that were idle for ``limit`` seconds, longest idle first, down to ``floor`` connections.

    While the pool has no more than ``floor`` connections, the timer is not armed.
    """

    def __init__(self, limit: float, floor: int, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, connections, loop)
        self._floor = floor

    def begin(self, pooled: PooledConnection) -> None:
        """Watch a connection that is idle from now on."""
        if self._is_armed:
            return
        connections = self._connections()
        if connections is not None and len(connections) > self._floor:
            self._arm(pooled.idle_since + self._limit)

    def _end_what_is_due(self, connections: Connections, now: float) -> float:
        alive = [pooled for pooled in connections if not pooled.con.is_closed()]
        surplus = len(alive) - self._floor
        for pooled in sorted(alive, key=lambda pooled: pooled.idle_since):
            if surplus <= 0:
                break
            if pooled.is_idle:
                if pooled.idle_since + self._limit > now:
                    return pooled.idle_since + self._limit
                pooled.is_surplus = True
                pooled.con.terminate()
                surplus -= 1
        # A connection that is only being checked may become idle again without a release.
        is_any_checked = any(not pooled.is_idle and pooled.checkout is None for pooled in alive)
        return now + self._limit if surplus > 0 and is_any_checked else math.inf
