"""A pool's background task that replaces connections before they get too old, and the spare that it opens for that.

``retirement`` decides what to do and explains the rules; this module does it. Some of the work happens elsewhere: a due
connection that is in use is replaced when it is released, and anything that needs a new connection may take the spare.
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

from ..clock import call_in, cancel, wait_until
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
_LOST = asyncpg.ConnectionDoesNotExistError("the replacement was closed before it was used")


class Replacement:
    """Retires the due connections of one pool, held by a weak reference. ``floor`` is the pool's ``min_size``."""

    def __init__(
        self, connections: Connections, floor: int, *, uniform: Callable[[float, float], float] = random.uniform
    ):
        self._connections = weakref.ref(connections, lambda _: self._end_soon())
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
        """The number of spares: 1 while a spare is open or being opened, otherwise 0."""
        return int(self._is_opening or self.spare is not None)

    def start(self) -> None:
        self._task = asyncio.create_task(_keep_young(self, self._wake), name=f"aiopqr-{self._name}-replace")

    def stats(self, now: float) -> ReplacementStats:
        overdue = sum(pooled.deadline + GRACE <= now for pooled in self._connections() or ())
        return ReplacementStats(sum(self._done.values()), self._delayed, dict(self._done), self._delayed_by, overdue)

    def wake(self) -> None:
        """Wake the task, because something may have become due or idle, or there is room for a spare."""
        self._wake.set()

    @contextlib.contextmanager
    def spare_wanted(self) -> Iterator[None]:
        """Until the block ends, have a spare ready if there is room, since a connection may turn out to be dead."""
        self._wanted += 1
        self._wake.set()
        try:
            yield
        finally:
            self._wanted -= 1

    def born(self, pooled: PooledConnection) -> None:
        """Called when a connection has been added to the pool."""
        if pooled.deadline - self._login_time < self._sleeps_until:
            self._wake.set()

    def take_spare(self) -> PooledConnection | None:
        """Hand over the spare. Returns None if there is none, or if it can no longer be used and was closed."""
        spare, self.spare = self.spare, None
        if spare is None:
            return None
        self._wake.set()
        connections = self._connections()
        if connections is None or connections.is_spoilt(spare):
            self._close(spare)
            return None
        self._failures = 0  # not earlier, since the server may close a spare right after its login
        return spare

    def discard_spare(self) -> None:
        """Close the spare, in the background."""
        spare, self.spare = self.spare, None
        if spare is not None:
            self._close(spare)

    def swap(self, pooled: PooledConnection) -> bool:
        """Put the spare in the place of a due connection, and close that in the background.

        Nothing is awaited in between, so nobody can find the place empty. Returns False if there is no spare.
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
        """Stop the task, and close the spare in the background."""
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.discard_spare()

    def terminate(self) -> None:
        """Like :meth:`close`, without waiting. The spare is terminated together with the other connections."""
        cancel((self._task,))
        self.spare = None

    def _end_soon(self) -> None:
        """Let the task end, because its pool is gone. Called in any thread."""
        if self._task is not None:
            call_in(self._task.get_loop(), self._wake.set)

    # Called by the task.

    def next_step(self, now: float) -> Step:
        """Decide what to do next."""
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
        """Carry out a step."""
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
                    # If the server accepts logins and then hangs up, pause before trying again.
                    self._delay(connections, None, _LOST, now)
                self.discard_spare()

    async def recover(self, exc: BaseException, now: float) -> None:
        """Log an unexpected error, and continue after a pause."""
        retry_in = self._back_off(now)
        message = "%s: replacing connections failed unexpectedly; trying again in %.1f s. Please report this bug"
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
        # Perhaps all of the server's slots are taken by connections that wait for a replacement. If this lasts for
        # another whole lifetime, close one idle connection to make room, unless it is the last.
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
        """Close and report a due connection that has lost its place."""
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
    """Whether the exception ends this task. If not, a user's hook has raised something that is not an Exception."""
    if isinstance(exc, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and bool(task.cancelling())
    return isinstance(exc, KeyboardInterrupt | SystemExit | GeneratorExit)
