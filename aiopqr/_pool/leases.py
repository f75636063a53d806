"""Replaces connections whose account goes away: because the store no longer names it, or because its lease ends.

A session outlives its password but not its role, and when a lease ends, the role is dropped or loses its rights. So
connections of an account that has left the pair are made due now. Connections of an account with a lease are made
due some time before it ends, if another account lasts longer; otherwise they are used until its end, and then closed.
"""

from __future__ import annotations

import asyncio
import math
import random
import weakref
from collections.abc import Callable

from ..events import LeaseEnded
from .connection import PooledConnection
from .connections import Connections, lease_margin

SHORTEST = 1.0  # with fewer seconds left, replacing a connection is not worthwhile


class Leases:
    """Watches the leases of one pool's connections, to which it holds a weak reference."""

    def __init__(self, connections: Connections, on_due: Callable[[], None]) -> None:
        self._connections = weakref.ref(connections)
        self._maker = connections.maker
        self._on_due = on_due
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, pooled: PooledConnection) -> None:
        """Called when a connection has been added to the pool."""
        if pooled.attempt.credential.ends_sessions or self._maker.has_left(pooled.attempt):
            self.look()

    def look(self) -> None:
        """Make connections due if necessary. Called for changed or renewed credentials, and for a new connection."""
        connections = self._connections()
        if connections is None or connections.is_closing:
            return
        now, ends = asyncio.get_running_loop().time(), []
        for pooled in tuple(connections):
            if pooled.con.is_closed():
                continue
            if self._maker.has_left(pooled.attempt):
                pooled.expire("superseded", now)
            if (end := self._maker.ends_at(pooled.attempt)) < math.inf:
                ends.append(end)
                self._bound(connections, pooled, end, now)
        self._on_due()
        self.close()
        if ends:
            ref = weakref.ref(self)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(min(ends), lambda: leases._over() if (leases := ref()) else None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _bound(self, connections: Connections, pooled: PooledConnection, end: float, now: float) -> None:
        """Make a connection due before its lease ends, if another account lasts longer."""
        if pooled.lease_end != end and pooled.why == "lease":  # the lease was renewed
            pooled.deadline, pooled.why = connections.lifetime.deadline(pooled.born), "lifetime"
        if pooled.why == "lease" or end - now <= SHORTEST or self._maker.lasts_until() <= end:
            return
        due = end - random.uniform(0.5, 1.0) * lease_margin(end - now)
        if due < pooled.deadline:
            pooled.deadline, pooled.why, pooled.lease_end = due, "lease", end

    def _over(self) -> None:
        """Terminate the connections whose lease has ended."""
        connections = self._connections()
        now = asyncio.get_running_loop().time()
        for pooled in tuple(connections or ()):
            if not pooled.con.is_closed() and self._maker.ends_at(pooled.attempt) <= now:
                username, in_use = pooled.attempt.credential.username, not pooled.is_idle
                pooled.con.terminate()
                event = LeaseEnded(name=self._maker.name, username=username, in_use=in_use)
                self._maker.events.emit(event)
        self.look()
