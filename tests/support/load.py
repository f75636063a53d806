"""Workers that use a pool until they are stopped, and what may go wrong for them.

An error is expected only if the path to the server was cut (``Cuts``) in the meantime, and it was raised either
by a query in progress then, or by a release that timed out waiting for the server. An acquire never fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

import aiopqr
from aiopqr.refusals import is_connection_lost

_GRACE = 0.3  # for what the kernel has received and the event loop has not read yet


class Cuts:
    """The times during which connections were being ended, or nothing got through."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._open: list[float] = []

    @asynccontextmanager
    async def cutting(self) -> AsyncIterator[None]:
        begun = time.monotonic()
        self._open.append(begun)
        try:
            yield
        finally:
            self._open.remove(begun)
            self._spans.append((begun, time.monotonic()))

    def cover(self, begun: float, ended: float) -> bool:
        """Whether one of them overlaps this period."""
        spans = [*self._spans, *((begin, time.monotonic()) for begin in self._open)]
        return any(begin < ended and begun < end + _GRACE for begin, end in spans)


@dataclass(frozen=True)
class Failure:
    where: str  # acquire, query, release
    error: BaseException
    begun: float
    ended: float

    def __str__(self) -> str:
        return f"{self.where} {self.ended - self.begun:.2f} s: {self.error!r} (cause: {self.error.__cause__!r})"


class Load:
    """What workers have done to a pool, and the results."""

    def __init__(
        self, pool: aiopqr.AlternatingPool, *, query_timeout: float | None = None, cuts: Cuts | None = None
    ) -> None:
        self.pool = pool
        self.cuts = cuts or Cuts()
        self.served = 0
        self.last_served = 0.0
        self.slowest_acquire = 0.0
        self.failures: list[Failure] = []
        self._query_timeout = query_timeout
        self._stop = False

    @property
    def unexpected(self) -> list[str]:
        return [str(failure) for failure in self.failures if not self._is_expected(failure)]

    def forget(self) -> None:
        """Drop the failures that were expected, so that a long run does not grow."""
        self.failures = [failure for failure in self.failures if not self._is_expected(failure)]

    @asynccontextmanager
    async def running(self, workers: int) -> AsyncIterator[Load]:
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._work(), name=f"load-{number}")
            try:
                yield self
            finally:
                self._stop = True

    async def serves(self, *, within: float = 20.0) -> None:
        """Wait until a checkout that began after this call has succeeded."""
        since = self.served
        async with asyncio.timeout(within):
            while self.served < since + 20:
                await asyncio.sleep(0.01)

    async def _work(self) -> None:
        while not self._stop:
            began = time.monotonic()
            where = "acquire"
            try:
                con = await self.pool.acquire()
                acquired = time.monotonic()
                self.slowest_acquire = max(self.slowest_acquire, acquired - began)
                try:
                    where, began = "query", acquired
                    await con.fetchval("select 1", timeout=self._query_timeout)
                except Exception as exc:
                    self._failed(where, exc, began)
                finally:
                    where, began = "release", time.monotonic()
                    await self.pool.release(con)
                self.served += 1
            except Exception as exc:
                self._failed(where, exc, began)
            await asyncio.sleep(0.002)

    def _failed(self, where: str, exc: BaseException, began: float) -> None:
        self.failures.append(Failure(where, exc, began, time.monotonic()))

    def _is_expected(self, failure: Failure) -> bool:
        kinds: tuple[type[BaseException], ...] = ()
        if failure.where == "query":
            kinds = (TimeoutError, asyncpg.InterfaceError)
        elif failure.where == "release":
            kinds = (TimeoutError,)
        lost = failure.where == "query" and is_connection_lost(failure.error)
        return (lost or isinstance(failure.error, kinds)) and self.cuts.cover(failure.begun, failure.ended)
