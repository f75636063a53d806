"""The background task of a pool that replaces connections before they are too old, and the spare that it opens.

``retirement`` decides what is to be done and explains the rules; this does it. What the task cannot do itself happens
elsewhere: a due connection that is in use is replaced in its release, and whoever opens a connection takes the spare.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg

from ..clock import cancel, wait_until
from ..errors import describe
from ..events import ConnectionOverdue, Event, Replaced, ReplacementDelayed
from ..refusals import Verdict, classify
from ..stats import ReplacementStats
from ._asyncpg import exchange, place_of, vacate
from .connection import PooledConnection
from .connections import Connections
from .retirement import GRACE, SPARE_PATIENCE, Close, Discard, Open, Report, Situation, Sleep, Step, Swap, decide

logger = logging.getLogger("aiopqr")

BACKOFF_FIRST = 1.0
BACKOFF_MAX = 30.0
_LOST = asyncpg.ConnectionDoesNotExistError("the replacement was closed while it waited")


class Replacement:
    """Retires the due connections of one pool, which it holds weakly. ``floor`` is how many are kept in any case."""

    def __init__(
        self, connections: Connections, floor: int, *, uniform: Callable[[float, float], float] = random.uniform
    ):
        self._connections = weakref.ref(connections, lambda _: self._wake.set())
        self._name = connections.maker.name
        self._lifetime = connections.lifetime.max_lifetime
        self._recent = min(self._lifetime / 2 or math.inf, SPARE_PATIENCE)
        self._floor = floor
        self._uniform = uniform
        self._wake = asyncio.Event()
        self._sleeps_until = math.inf
        self._task: asyncio.Task[None] | None = None
        self.spare: PooledConnection | None = None
        self._is_opening = False
        self._wanted = 0
        self._login_time = 0.0
        self._unused_since: float | None = None
        self._not_before = -math.inf
        self._failures = 0
        self._full_since: float | None = None
        self._done: Counter[str] = Counter()
        self._delayed = 0
        self._delayed_by: str | None = None

    @property
    def spares(self) -> int:
        """Connections without a place: 1 while a spare is open or being opened."""
        return int(self._is_opening or self.spare is not None)

    def start(self) -> None:
        self._task = asyncio.create_task(_keep_young(self, self._wake), name=f"aiopqr-{self._name}-replace")

    def stats(self, now: float) -> ReplacementStats:
        overdue = sum(pooled.deadline + GRACE <= now for pooled in self._connections() or ())
        return ReplacementStats(sum(self._done.values()), self._delayed, dict(self._done), self._delayed_by, overdue)

    def wake(self) -> None:
        """Something became due, or idle, or there is room, and the task does not know of it."""
        self._wake.set()

    @contextlib.contextmanager
    def spare_wanted(self) -> Iterator[None]:
        """Meanwhile somebody waits for a connection that may be dead: open another one, if there is room."""
        self._wanted += 1
        self._wake.set()
        try:
            yield
        finally:
            self._wanted -= 1

    def born(self, pooled: PooledConnection) -> None:
        """A connection came into the pool."""
        if pooled.deadline - self._login_time < self._sleeps_until:
            self._wake.set()

    def take_spare(self) -> PooledConnection | None:
        """The spare, for whoever opens a connection; one that is of no use any more is closed instead."""
        spare, self.spare = self.spare, None
        if spare is None:
            return None
        self._wake.set()
        connections = self._connections()
        if connections is None or connections.is_spoilt(spare):
            self._close(spare)
            return None
        self._failures = 0  # only now: a spare may be lost as soon as it is open
        return spare

    def discard_spare(self) -> None:
        """Close the spare, in the background."""
        spare, self.spare = self.spare, None
        if spare is not None:
            self._close(spare)

    def swap(self, pooled: PooledConnection) -> bool:
        """Put the spare in the place of a due connection, which is closed in the background.

        Nothing is awaited, so nobody finds the place empty. False if there is no spare.
        """
        connections = self._connections()
        if connections is None or connections.is_closing or pooled.con.is_closed():
            return False
        if (spare := self.take_spare()) is None:
            return False
        exchange(pooled.con, spare.con)
        connections.adopt(spare)
        self._retire(connections, pooled)
        return True

    async def close(self) -> None:
        """End the task, and close the spare in the background."""
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.discard_spare()

    def terminate(self) -> None:
        """Like :meth:`close`, where nothing can be awaited. The spare ends with the other connections."""
        cancel((self._task,))
        self.spare = None

    # The task's part.

    def next_step(self, now: float) -> Step:
        """What is to be done."""
        connections = self._connections()
        if connections is None:
            return Sleep(math.inf)
        return decide(
            Situation(
                now=now,
                connections=[pooled for pooled in connections if not pooled.con.is_closed()],
                floor=self._floor,
                room=connections.room,
                spare=self.spare,
                is_spoilt=self.spare is not None and connections.is_spoilt(self.spare),
                is_wanted=self._wanted > 0,
                login_time=self._login_time,
                recent=self._recent,
                not_before=self._not_before,
                unused_since=self._unused_since,
            )
        )

    async def do(self, step: Step, now: float) -> None:
        """Do it."""
        connections = self._connections()
        if connections is None:
            return
        match step:
            case Sleep(until):
                self._sleeps_until = until
                del connections
                await wait_until(until, self._wake)
            case Report(pooled):
                pooled.is_reported = True
                overdue, is_idle = now - pooled.deadline, pooled.is_idle
                self._emit(ConnectionOverdue(name=self._name, overdue=overdue, is_idle=is_idle))
            case Close(pooled):
                vacate(place_of(pooled.con))
                self._retire(connections, pooled)
            case Swap(pooled):
                self.swap(pooled)
            case Open(due):
                await self._open_spare(connections, due)
            case Discard(is_unused):
                if is_unused:
                    self._unused_since = now
                elif self.spare is not None and self.spare.con.is_closed():
                    # A server that accepts logins and hangs up at once must not be tried without a pause.
                    self._delay(connections, None, _LOST, now)
                self.discard_spare()

    async def recover(self, exc: BaseException, now: float) -> None:
        """Something unforeseen was raised: go on, after a pause."""
        retry_in = self._back_off(now)
        message = "%s: replacing connections failed unexpectedly; trying again in %.1f s. Please report this."
        logger.error(message, self._name, retry_in, exc_info=exc)
        await asyncio.sleep(retry_in)

    async def _open_spare(self, connections: Connections, due: PooledConnection | None) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._is_opening = True
        try:
            self.spare = await connections.open_spare()
        except BaseException as exc:
            if _ends_the_task(exc):
                raise
            self._delay(connections, due, exc, loop.time())
        else:
            self._login_time = loop.time() - begun
            self._delayed_by, self._full_since, self._unused_since = None, None, None
        finally:
            self._is_opening = False

    def _delay(self, connections: Connections, due: PooledConnection | None, exc: BaseException, now: float) -> None:
        self._delayed += 1
        self._delayed_by = describe(exc)
        retry_in = self._back_off(now)
        overdue = max((now - pooled.deadline for pooled in connections), default=0.0)
        why: dict[str, Any] = {"error": self._delayed_by, "overdue": max(overdue, 0.0)}
        self._emit(ReplacementDelayed(name=self._name, retry_in=retry_in, **why))
        if classify(exc.__cause__ or exc) is not Verdict.SERVER_FULL:
            self._full_since = None
            return
        # The server's slots may be full of nothing but connections that wait for a replacement. After a whole further
        # lifetime of that, one idle connection makes room, as long as others are left.
        self._full_since = self._full_since or now
        if now - self._full_since >= self._lifetime > 0 and due and due.is_idle and len(connections) > 1:
            self._full_since = now
            vacate(place_of(due.con))
            self._retire(connections, due)

    def _back_off(self, now: float) -> float:
        self._failures += 1
        pause: float = self._uniform(0.5, 1.0) * min(BACKOFF_FIRST * 2 ** min(self._failures - 1, 10), BACKOFF_MAX)
        self._not_before = now + pause
        return pause

    def _retire(self, connections: Connections, pooled: PooledConnection) -> None:
        """A due connection has given up its place."""
        self._done[pooled.why] += 1
        age = asyncio.get_running_loop().time() - pooled.born
        connections.part_with(pooled)
        self._emit(Replaced(name=self._name, parity=pooled.attempt.parity, age=age, why=pooled.why))

    def _close(self, spare: PooledConnection) -> None:
        if connections := self._connections():
            connections.close_later(spare)
        else:
            spare.con.terminate()

    def _emit(self, event: Event) -> None:
        if connections := self._connections():
            connections.maker.events.emit(event)


async def _keep_young(replacement: Replacement, wake: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while replacement._connections() is not None:
        wake.clear()
        try:
            now = loop.time()
            await replacement.do(replacement.next_step(now), now)
        except BaseException as exc:
            if _ends_the_task(exc):
                raise
            await replacement.recover(exc, loop.time())


def _ends_the_task(exc: BaseException) -> bool:
    """Whether this task is being ended; otherwise a hook of the user's has raised what is no Exception."""
    if isinstance(exc, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and bool(task.cancelling())
    return isinstance(exc, KeyboardInterrupt | SystemExit | GeneratorExit)
