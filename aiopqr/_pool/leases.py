"""Connections that do not outlive their account: of an account that the store no longer names, and of a lease.

A session outlives its password, but not its role: where a lease ends, the role is dropped or loses its rights. So what
belongs to an account that has left the pair is made due at once. A connection whose lease ends is made due some time
before, if another account lasts longer; otherwise it serves until the end, and is closed then.
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

SHORTEST = 1.0  # what ends sooner is not replaced for something that ends as soon


class Leases:
    """Watches the leases of one pool's connections, which it holds weakly."""

    def __init__(self, connections: Connections, on_due: Callable[[], None]) -> None:
        self._connections = weakref.ref(connections)
        self._maker = connections.maker
        self._on_due = on_due
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, pooled: PooledConnection) -> None:
        """A connection has come into the pool."""
        if pooled.attempt.credential.ends_sessions or self._maker.has_left(pooled.attempt):
            self.look()

    def look(self) -> None:
        """See what is due now: credentials are newer, or last longer, or there is another connection."""
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
        """Make it due before its lease ends, if there is something that lasts longer."""
        if pooled.lease_end != end and pooled.why == "lease":  # the lease was renewed
            pooled.deadline, pooled.why = connections.lifetime.deadline(pooled.born), "lifetime"
        if pooled.why == "lease" or end - now <= SHORTEST or self._maker.lasts_until() <= end:
            return
        due = end - random.uniform(0.5, 1.0) * lease_margin(end - now)
        if due < pooled.deadline:
            pooled.deadline, pooled.why, pooled.lease_end = due, "lease", end

    def _over(self) -> None:
        """A lease has ended: close what it has left."""
        connections = self._connections()
        now = asyncio.get_running_loop().time()
        for pooled in tuple(connections or ()):
            if not pooled.con.is_closed() and self._maker.ends_at(pooled.attempt) <= now:
                username, in_use = pooled.attempt.credential.username, not pooled.is_idle
                pooled.con.terminate()
                event = LeaseEnded(name=self._maker.name, username=username, in_use=in_use)
                self._maker.events.emit(event)
        self.look()
