"""First come, first served: the permits to check out a connection.

A permit that comes back goes to whoever waits longest, never to a newcomer. (asyncpg's own queue lets a task that
releases and acquires again overtake those that wait.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .errors import TooManyWaiting


class Turnstile:
    """``permits`` may be inside at a time. ``max_waiting`` limits the queue; None does not."""

    __slots__ = ("_closed", "_free", "_loop", "_max_waiting", "_waiters", "permits")

    def __init__(self, permits: int, max_waiting: int | None, loop: asyncio.AbstractEventLoop) -> None:
        self.permits = self._free = permits
        self._max_waiting = max_waiting
        self._loop = loop
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed: Callable[[], Exception] | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def try_enter(self) -> bool:
        """Take a permit if one is free. Nobody can be waiting then."""
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
            raise TooManyWaiting(f"{len(self._waiters)} tasks wait for a connection already (max_waiting)")
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        timer = None if deadline is None else self._loop.call_at(deadline, _expire, waiter)
        try:
            await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()  # given the permit and cancelled in the same turn of the loop
            raise
        finally:
            if timer:
                timer.cancel()

    def leave(self) -> None:
        """Give a permit back."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1

    def close(self, error: Callable[[], Exception]) -> None:
        """Fail everyone who waits, and everyone who comes."""
        self._closed = error
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error())


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
