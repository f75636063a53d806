"""The part of a refresher that belongs to one event loop, and is replaced when that loop is gone.

A loop is gone when another one runs in this thread (``asyncio.run()`` a second time), or when the process is a fork of
the one that the loop ran in. Its tasks will never run again, so they are dropped silently.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ..clock import cancel
from ..errors import ConfigurationError


class LoopState:
    """Tasks, waiters and locks of one event loop, the one that runs when this is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self.lock = asyncio.Lock()  # held while a fetch is made
        self.wake = asyncio.Event()  # the task has something to look at
        self.changed = asyncio.Event()
        self.waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.task: asyncio.Task[None] | None = None
        self.flights: set[asyncio.Task[object]] = set()

    @property
    def is_current(self) -> bool:
        """Whether the loop runs here and now."""
        return self._loop is asyncio.get_running_loop() and self._pid == os.getpid()

    @property
    def is_running(self) -> bool:
        """Whether the task is there to make fetches."""
        return self.task is not None and not self.task.done()

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        return [task for task in (self.task, *self.flights) if task is not None]

    def settle(self, ticket: int, error: BaseException | None) -> None:
        """Wake those who wait for a fetch up to this one."""
        settled = [waiter for wanted, waiter in self.waiters if wanted <= ticket and not waiter.done()]
        self.waiters = [(wanted, waiter) for wanted, waiter in self.waiters if wanted > ticket]
        for waiter in settled if not self._loop.is_closed() else ():
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    def drop(self, name: str) -> None:
        """Give up what belongs to a loop that is gone. Raises :class:`ConfigurationError` if the loop still runs."""
        is_own = self._pid == os.getpid()
        if is_own and self._loop.is_running():
            raise ConfigurationError(
                f"refresher {name!r} is in use on an event loop that runs in another thread; each running loop needs a "
                "refresher, and a pool, of its own"
            )
        if is_own:
            cancel(self.tasks)
        self._forget_quietly()

    def cancel(self) -> None:
        """End the tasks. Those of a closed loop cannot even be cancelled."""
        cancel(self.tasks)
        if self._loop.is_closed():
            self._forget_quietly()

    def _forget_quietly(self) -> None:
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own way
