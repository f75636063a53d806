"""The little that all background work shares: to end it, and to sleep until something happens or it is time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

TICK = 0.001  # uvloop counts in milliseconds: a timer may go off that much, in seconds, before its time


def cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks. Those of a loop that is closed can neither run nor be cancelled any more."""
    for task in tuple(tasks):
        if task is not None and not task.get_loop().is_closed():
            task.cancel()


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's time, by the shortest way: asyncio's own loops only pass on ``time.monotonic()``."""
    return time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time


async def wait_until(when: float, wake: asyncio.Event) -> None:
    """Sleep until ``when``, in loop time, or until ``wake`` is set, or an hour: whoever calls looks again."""
    loop = asyncio.get_running_loop()
    # Always a timer: by it the loop holds a task whose owner was dropped, which must still wake up and end.
    timer = loop.call_at(min(when, loop.time() + 3600.0), wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()
