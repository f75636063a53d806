"""Helpers for background work: cancelling tasks, and sleeping until a time or an event."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

TICK = 0.001  # uvloop counts in milliseconds, so a timer may fire up to this many seconds early


def cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks, except those of a closed loop, which cannot be cancelled."""
    for task in tuple(tasks):
        if task is not None:
            call_in(task.get_loop(), task.cancel)


def call_in(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    """Call what belongs to a loop: now, or in the loop's thread if that is another. Not if the loop is closed.

    Objects that nobody closed need this, since the garbage collector may run in any thread.
    """
    if loop.is_running() and _running_loop() is not loop:
        with contextlib.suppress(RuntimeError):  # it has just been closed
            loop.call_soon_threadsafe(callback, *args)
    elif not loop.is_closed():
        callback(*args)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def current_task() -> asyncio.Task[Any] | None:
    """The current task. None if there is none, or if no loop is running."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The fastest function for the loop's time. On asyncio's own loops, that is ``time.monotonic()``."""
    return time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time


async def wait_until(when: float, wake: asyncio.Event) -> None:
    """Sleep until ``when``, in loop time, or until ``wake`` is set, but at most an hour. The caller must look again."""
    loop = asyncio.get_running_loop()
    # Always set a timer, because it keeps the task alive. If the owner is dropped, the task must still wake up and end.
    timer = loop.call_at(min(when, loop.time() + 3600.0), wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()
