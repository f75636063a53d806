"""Make before break: the replacement of a connection is open and complete before the old one is closed.

One background task opens at most one *spare*, a connection that belongs to nobody yet, when a connection is due. Any
due connection that is idle, or is released while the spare waits, is then retired for it: it is closed in the
background, and whoever connects next (asyncpg's floor maintenance, or an acquirer) is handed the spare at once. A
connection that stays checked out delays no other, and none is given up for a replacement that cannot be had.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import asyncpg

from ..clock import cancel, wait_until
from ..errors import describe
from ..events import Replaced, ReplacementDelayed
from ..refusals import Verdict, classify
from ..stats import ReplacementStats
from .connection import PooledConnection, most_overdue, next_deadline
from .connections import Connections

logger = logging.getLogger("aiopqr")

SPARE_PATIENCE = 30.0  # how long a spare waits to be taken
OPEN_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0
BACKOFF_FIRST = 1.0
BACKOFF_MAX = 30.0
_LOST = asyncpg.ConnectionDoesNotExistError("the replacement was closed while it waited")


class Replacement:
    """Retires the due connections of one pool, which it holds weakly. ``floor`` is how many are kept in any case."""

    def __init__(
        self, connections: Connections, floor: int, *, uniform: Callable[[float, float], float] = random.uniform
    ):
        self._connections = weakref.ref(connections, lambda _: self._wake.set())
        self._name = connections.connector.name
        self._lifetime = connections.lifetime
        self._floor = floor
        self._uniform = uniform
        self._wake = asyncio.Event()
        self._sleeps_until = math.inf
        self._task: asyncio.Task[None] | None = None
        self._closing: dict[asyncio.Task[None], Any] = {}
        self.spare: PooledConnection | None = None
        self._opening = False
        self._is_claimed = False  # a connection was retired for the spare already
        self._unused_since: float | None = None  # when a spare expired because all due connections were busy
        self._not_before = -math.inf
        self._failures = 0
        self._full_since: float | None = None
        self._done: Counter[str] = Counter()
        self._delayed = 0
        self._delayed_by: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a spare waits for a connection to be retired."""
        return self.spare is not None and not self._is_claimed

    @property
    def spares(self) -> int:
        """Connections beside the pool's: 1 while a spare is open or being opened."""
        return int(self._opening or self.spare is not None)

    def start(self) -> None:
        self._task = asyncio.create_task(_keep_young(self, self._wake), name=f"aiopqr-{self._name}-replace")

    def stats(self) -> ReplacementStats:
        return ReplacementStats(sum(self._done.values()), self._delayed, dict(self._done), self._delayed_by)

    def wake(self) -> None:
        """Something became due, or idle, that the task does not know of."""
        self._wake.set()

    def born(self, pooled: PooledConnection) -> None:
        """A connection came into the pool."""
        if pooled.deadline < self._sleeps_until:
            self._wake.set()

    def take_spare(self) -> PooledConnection | None:
        """The spare, for whoever connects; a stale or dead one is closed instead."""
        spare, self.spare = self.spare, None
        self._is_claimed = False
        if spare is None:
            return None
        self._wake.set()
        connections = self._connections()
        if connections is None or connections.is_spoilt(spare):
            self.close_later(spare.con)
            return None
        self._failures = 0  # only now: a spare may be lost as soon as it is open
        return spare

    def discard_spare(self) -> None:
        """Close the spare, in the background."""
        spare, self.spare = self.spare, None
        self._is_claimed = False
        if spare is not None:
            self.close_later(spare.con)

    def retire_released(self, pooled: PooledConnection) -> None:
        """Close a due connection in its release, in the background, for the spare that waits."""
        self.claim(pooled)
        self.close_later(pooled.con)

    def close_later(self, con: Any) -> None:
        """Close in the background, owned and awaited."""
        task = asyncio.create_task(_close(con), name=f"aiopqr-{self._name}-close")
        self._closing[task] = con
        task.add_done_callback(self._closed)

    async def close(self) -> None:
        """End the task, close the spare, and wait for what is being closed."""
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.discard_spare()
        while self._closing:
            await asyncio.wait(self._closing)

    def terminate(self) -> None:
        """As :meth:`close`, where nothing can be awaited."""
        cancel((self._task, *self._closing))
        for con in self._closing.values():
            con.terminate()  # the task may not even have begun
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.con.terminate()

    # The task's part.

    def next_step(self, now: float) -> float:
        """When there is something to do."""
        connections = self._connections()
        if connections is None or self._closing:
            return math.inf  # the end of a closing wakes the task
        if self.spare is None:
            return max(next_deadline(self._worth_a_spare(connections)), self._not_before)
        if connections.is_spoilt(self.spare):
            return now
        expiry = self.spare.born + SPARE_PATIENCE
        if self._is_claimed:
            return expiry
        return min(expiry, next_deadline(pooled for pooled in connections if pooled.is_idle))

    async def step(self) -> None:
        """Do the one thing that is to be done now."""
        now = asyncio.get_running_loop().time()
        connections = self._connections()
        if connections is None:
            return
        due = most_overdue(self._worth_a_spare(connections), now)
        if self.spare is not None:
            if self.spare.con.is_closed():
                self.discard_spare()
                if due is not None:  # who lets in and hangs up at once is not to be knocked at without a pause
                    await self._delay(connections, due, _LOST, now)
            elif connections.is_spoilt(self.spare):
                self.discard_spare()
            elif now >= self.spare.born + SPARE_PATIENCE:
                self._unused_since = None if self._is_claimed else now
                self.discard_spare()
            elif due is not None and due.is_idle:
                await self._retire_idle(due)
        elif due is not None:
            spacious = len(connections) > self._floor
            if spacious and due.is_idle and not due.is_missed(now - self._missed_within()):
                await self._retire_idle(due)
            else:
                await self._open_spare(connections, due)

    def _worth_a_spare(self, connections: Connections) -> Iterable[PooledConnection]:
        """All connections, but for those that were busy all along while a spare waited in vain."""
        since = self._unused_since
        if since is None:
            return connections
        return (s for s in connections if s.is_idle or s.acquired_at > since)

    def _missed_within(self) -> float:
        return min(self._lifetime.max_lifetime / 2 or math.inf, SPARE_PATIENCE)

    async def _open_spare(self, connections: Connections, due: PooledConnection) -> None:
        loop = asyncio.get_running_loop()
        self._opening = True
        try:
            self.spare = await connections.open_spare(OPEN_TIMEOUT)
        except (Exception, asyncio.CancelledError) as exc:
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task and task.cancelling():
                raise  # otherwise it is one that the user's hook met, which must not end this task
            await self._delay(connections, due, exc, loop.time())
        else:
            self._is_claimed = False
            self._delayed_by, self._full_since, self._unused_since = None, None, None
        finally:
            self._opening = False

    async def _delay(self, connections: Connections, due: PooledConnection, exc: BaseException, now: float) -> None:
        self._failures += 1
        self._delayed += 1
        self._delayed_by = describe(exc)
        retry_in = self._uniform(0.5, 1.0) * min(BACKOFF_FIRST * 2 ** min(self._failures - 1, 10), BACKOFF_MAX)
        self._not_before = now + retry_in
        told: dict[str, Any] = {"error": self._delayed_by, "overdue": max(now - due.deadline, 0.0)}
        connections.connector.events.emit(ReplacementDelayed(name=self._name, retry_in=retry_in, **told))
        if classify(exc.__cause__ or exc) is not Verdict.SERVER_FULL:
            self._full_since = None
            return
        # The server's slots may be full of nothing but connections that wait for a replacement. After a whole further
        # lifetime of that, one idle connection makes room, as long as others are left.
        self._full_since = self._full_since or now
        if now - self._full_since >= self._lifetime.max_lifetime > 0 and due.is_idle and len(connections) > 1:
            self._full_since = now
            await self._retire_idle(due)

    async def _retire_idle(self, pooled: PooledConnection) -> None:
        # In this very step of the loop asyncpg marks it closed, so no acquirer can get hold of it.
        self.claim(pooled)
        await _close(pooled.con)

    def claim(self, pooled: PooledConnection) -> None:
        """``session`` is being retired, and the spare, if there is one, is for its place."""
        self._is_claimed = self.spare is not None
        pooled.retiring = True
        self._done[pooled.why] += 1
        age = asyncio.get_running_loop().time() - pooled.born
        parity = pooled.attempt.parity if pooled.attempt else None
        if connections := self._connections():
            connections.connector.events.emit(Replaced(name=self._name, parity=parity, age=age, why=pooled.why))

    def _closed(self, task: asyncio.Task[None]) -> None:
        del self._closing[task]
        self._wake.set()


async def _keep_young(replacement: Replacement, wake: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while replacement._connections() is not None:
        wake.clear()
        when = replacement.next_step(loop.time())
        if when <= loop.time():
            await replacement.step()
            continue
        replacement._sleeps_until = when
        await wait_until(when, wake)


async def _close(connection: Any) -> None:
    """A connection that is on its way out may fail to say goodbye: asyncpg has dropped it then."""
    try:
        await connection.close(timeout=CLOSE_TIMEOUT)
    except Exception:
        logger.debug("a connection could not be closed gracefully", exc_info=True)
