"""The part of a refresher that belongs to one event loop, and is replaced when that loop is gone.

A loop is gone when another one runs in this thread (a second ``asyncio.run()``), or after a fork, in the child. Its
tasks will never run again, so they are dropped silently.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ..clock import cancel
from ..errors import ConfigurationError


class LoopState:
    """Tasks, waiters and locks that belong to the event loop that was running when this was created."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self.lock = asyncio.Lock()  # held during a fetch
        self.wake = asyncio.Event()  # tells the task to check what is due
        self.changed = asyncio.Event()
        self.waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.task: asyncio.Task[None] | None = None
        self.flights: set[asyncio.Task[object]] = set()

    @property
    def is_current(self) -> bool:
        """Whether this state belongs to the loop that runs now, in this process."""
        return self._loop is asyncio.get_running_loop() and self._pid == os.getpid()

    @property
    def is_running(self) -> bool:
        """Whether the task is alive."""
        return self.task is not None and not self.task.done()

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        return [task for task in (self.task, *self.flights) if task is not None]

    def settle(self, ticket: int, error: BaseException | None) -> None:
        """Wake everyone who waits for this fetch or an earlier one."""
        settled = [waiter for wanted, waiter in self.waiters if wanted <= ticket and not waiter.done()]
        self.waiters = [(wanted, waiter) for wanted, waiter in self.waiters if wanted > ticket]
        for waiter in settled if not self._loop.is_closed() else ():
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    def drop(self, name: str) -> None:
        """Drop the tasks of a loop that is gone. Raises :class:`ConfigurationError` if the loop is still running."""
        is_own = self._pid == os.getpid()
        if is_own and self._loop.is_running():
            raise ConfigurationError(
                f"refresher {name!r} is in use on an event loop that runs in another thread; each running loop needs "
                "its own refresher and its own pool"
            )
        if is_own:
            cancel(self.tasks)
        self._forget_quietly()

    def cancel(self) -> None:
        """Cancel the tasks. If the loop is closed, that is impossible, so they are only silenced."""
        cancel(self.tasks)
        if self._loop.is_closed():
            self._forget_quietly()

    def _forget_quietly(self) -> None:
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather() does
