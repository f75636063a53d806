"""The permits to check out a connection, granted first come, first served.

A returned permit goes to the task that has waited longest, never to a newcomer. (With asyncpg's own queue, a task that
releases and acquires again can overtake waiting tasks.)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from ..errors import TooManyWaiting


class Waiters:
    """Grants up to ``permits`` permits at a time. ``max_waiting`` limits the queue; None means no limit.
    Tasks that have a permit, but still wait for their connection to be opened, do not count.

    Until :meth:`open`, attempts to enter raise the error that ``closed`` makes.
    """

    def __init__(
        self,
        permits: int,
        max_waiting: int | None,
        loop: asyncio.AbstractEventLoop,
        closed: Callable[[], Exception] | None = None,
    ) -> None:
        self.permits = self._free = permits
        self._max_waiting = max_waiting
        self._loop = loop
        self._waiters: dict[asyncio.Future[None], float] = {}  # in order, with their deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf
        self._closed = closed

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def try_enter(self) -> bool:
        """Take a permit if one is free, which implies that nobody is waiting."""
        if self._free and self._closed is None:
            self._free -= 1
            return True
        return False

    async def enter(self, deadline: float | None) -> None:
        """Wait for a permit. Raises ``TimeoutError`` at ``deadline``, in loop time, and :class:`TooManyWaiting`."""
        if self._closed is not None:
            raise self._closed()
        if self.try_enter():
            return
        if self._max_waiting is not None and len(self._waiters) >= self._max_waiting:
            raise TooManyWaiting(f"{len(self._waiters)} tasks are already waiting for a connection (max_waiting)")
        waiter = self._loop.create_future()
        self._waiters[waiter] = math.inf if deadline is None else deadline
        if deadline is not None and deadline < self._looks_at:
            self._look_at(deadline)
        try:
            await waiter
        except BaseException:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()  # this got the permit and was cancelled in the same loop iteration
            raise

    def leave(self) -> None:
        """Give a permit back."""
        while self._waiters:
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1

    def open(self) -> None:
        """Grant permits from now on."""
        self._closed = None

    def close(self, error: Callable[[], Exception]) -> None:
        """Raise an error for everyone who waits now or comes later."""
        self._closed = error
        self._fail(math.inf, error)
        if self._timer is not None:
            self._timer.cancel()

    # One timer serves all waiters. One for each would cost more than the rest of the wait, and cancelled timers would
    # pile up in the loop's heap until they are due.

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = when
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer, self._looks_at = None, math.inf
        self._fail(self._loop.time(), TimeoutError)
        if (earliest := min(self._waiters.values(), default=math.inf)) < math.inf:
            self._look_at(earliest)

    def _fail(self, until: float, error: Callable[[], Exception]) -> None:
        for waiter, deadline in tuple(self._waiters.items()):
            if deadline <= until:
                del self._waiters[waiter]
                if not waiter.done():
                    waiter.set_exception(error())
