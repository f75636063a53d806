"""aiopqr's own threads, for work that would block the event loop: files, key derivations, name resolution.

The loop's default executor and anyio's worker threads are shared with other code, whose long jobs can take all of them.
Then no login would get a thread. The threads here serve only aiopqr. They are daemon threads, so a call that hangs (on
a dead network mount, for example) does not keep the process from exiting. A ThreadPoolExecutor would, since its threads
are joined at exit.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_IDLE = 10.0  # how many seconds a thread waits for more work before it ends


class Threads:
    """At most ``limit`` daemon threads, which start when there is work and end when there has been none for a while.

    If all of them hang, no more threads are started, and further calls wait until their callers give up. A forked child
    starts its own threads. Functions see the caller's context variables.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._forget()
        _alive.add(self)

    def _forget(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._started = 0
        self._idle = 0

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``function`` in one of the threads, and return its result or raise its exception.

        A cancelled caller stops waiting at once. If its call has not begun, it is dropped. If it has, it continues in
        its thread, and the result is discarded.
        """
        return await self.submit(function, *args, **kwargs)

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Like :meth:`run`, but returns a future of the running loop."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        job = _Job(future, partial(contextvars.copy_context().run, function, *args, **kwargs))
        with self._changed:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._changed.notify()
            elif self._started < self._limit:
                self._start(job)
        future.add_done_callback(partial(self._withdraw, job))
        return future

    def _start(self, job: _Job) -> None:
        self._started += 1
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no more threads; if some of ours are running, they will do the job
            self._started -= 1
            if not self._started:
                self._jobs.remove(job)
                raise

    def _withdraw(self, job: _Job, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            del job  # an idle thread must not keep arguments, which may contain a password

    def _next(self) -> _Job | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs, _IDLE)
            self._idle -= 1
            if self._jobs:
                return self._jobs.popleft()
            self._started -= 1
            return None


class _Job:
    """One call, and the future that waits for it in an event loop."""

    __slots__ = ("_call", "_future", "_loop")

    def __init__(self, future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
        self._loop = future.get_loop()
        self._future = future
        self._call = call

    def run(self) -> None:
        if self._future.cancelled():
            return
        try:
            settle = partial(_set_result, self._future, self._call())
        except BaseException as exc:
            settle = partial(_set_exception, self._future, exc)
        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:
            pass  # the loop was closed in the meantime, so nobody is waiting
        finally:
            del self, settle  # break a cycle: the future keeps the exception, whose traceback keeps this frame


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], exc: BaseException) -> None:
    if isinstance(exc, StopIteration):  # futures do not accept it
        stopped, exc = exc, RuntimeError("the function raised StopIteration")
        exc.__cause__ = stopped
    if not future.done():
        future.set_exception(exc)


_alive: weakref.WeakSet[Threads] = weakref.WeakSet()


def _forget_after_fork() -> None:
    for threads in _alive:
        threads._forget()


os.register_at_fork(after_in_child=_forget_after_fork)


class OwnThread(Threads):
    """A single daemon thread, for a caller whose calls may hang. Only one call runs at a time."""

    def __init__(self, name: str = "aiopqr-own") -> None:
        super().__init__(1, name)


#: The threads that all of aiopqr shares in this process.
shared = Threads(4, "aiopqr")
in_thread = shared.run
