"""The operations of every pool, built on the pool's own ``acquire``, ``select_on`` and ``rows_on``."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any

from . import Operation, Options, Where

SELECT = "SELECT 1"
ROWS = "SELECT n, n * 2 AS twice, 'row ' || n AS name FROM generate_series(1, 10) AS n"


class Pooled(ABC):
    """A pool, with its own context manager and its own ways of running a query."""

    def __init__(self, where: Where, options: Options) -> None:
        self.where = where
        self.options = options

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    def acquire(self) -> AbstractAsyncContextManager[Any]: ...

    @abstractmethod
    async def select_on(self, con: Any) -> object: ...

    @abstractmethod
    async def rows_on(self, con: Any) -> object: ...

    def operation(self, name: str) -> Operation:
        operation: Operation = getattr(self, name)
        return operation

    async def hold(self) -> None:
        async with self.acquire():
            pass

    async def select(self) -> None:
        async with self.acquire() as con:
            await self.select_on(con)

    async def rows(self) -> None:
        async with self.acquire() as con:
            await self.rows_on(con)

    async def waited(self) -> float:
        """Do a ``select``, and return how long its acquire took, in seconds."""
        began = time.perf_counter()
        async with self.acquire() as con:
            waited = time.perf_counter() - began
            await self.select_on(con)
        return waited
