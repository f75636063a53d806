"""The little that all background work shares: to end it, and to sleep until something happens or it is time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any


def cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks. Those of a loop that is closed can neither run nor be cancelled any more."""
    for task in tuple(tasks):
        if task is not None and not task.get_loop().is_closed():
            task.cancel()


async def wait_until(when: float, wake: asyncio.Event) -> None:
    """Sleep until ``when``, in loop time (``inf``: for ever), or until ``wake`` is set."""
    timer = asyncio.get_running_loop().call_at(when, wake.set) if when < math.inf else None
    try:
        await wake.wait()
    finally:
        if timer:
            timer.cancel()
