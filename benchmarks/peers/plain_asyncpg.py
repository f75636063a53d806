"""asyncpg: its pool with its defaults or a password callable, a connection for each task, and ``connect``."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from . import Operation, Options, Where
from .pooled import ROWS, SELECT, Pooled


class Pool(Pooled):
    pool: Any

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(self.where.dsn, **self.login(), **self.sizes())
        # asyncpg's pool has no lifetime of its own; this is what its users write instead.
        self._expiry = asyncio.create_task(self._expire()) if self.options.lifetime else None

    def login(self) -> dict[str, Any]:
        return {"user": self.where.odd.username, "password": self.where.odd.password}

    def sizes(self) -> dict[str, Any]:
        return {"min_size": self.options.size, "max_size": self.options.size}

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(self.options.lifetime)
            await self.pool.expire_connections()

    async def close(self) -> None:
        if self._expiry:
            self._expiry.cancel()
            await asyncio.wait({self._expiry})
        await self.pool.close()

    def acquire(self) -> Any:
        return self.pool.acquire()

    async def select_on(self, con: Any) -> object:
        return await con.fetchval(SELECT)

    async def rows_on(self, con: Any) -> object:
        return await con.fetch(ROWS)


class CallablePool(Pool):
    """One account, whose password is fetched from the store before each connect."""

    def login(self) -> dict[str, Any]:
        return {"user": self.where.odd.username, "password": self._password}

    async def _password(self) -> str:
        store = self.options.store
        return (await store.fetch()).odd.password if store else self.where.odd.password


class Bare(Pool):
    """A connection for each task: no pool can be faster."""

    async def open(self) -> None:
        self._free: list[Any] = []

    async def close(self) -> None:
        for con in self._free:
            await con.close()

    @asynccontextmanager
    async def acquire(self) -> Any:  # there is a connection for each task, so one is always free
        con = self._free.pop() if self._free else await asyncpg.connect(self.where.dsn, **self.login())
        try:
            yield con
        finally:
            self._free.append(con)


class Churn:
    def __init__(self, where: Where, options: Options) -> None:
        self._where = where

    async def open(self) -> None:
        pass

    def operation(self, name: str) -> Operation:
        return self.churn

    async def churn(self) -> None:
        account = self._where.odd
        con = await asyncpg.connect(self._where.dsn, user=account.username, password=account.password)
        await con.fetchval(SELECT)
        await con.close()

    async def close(self) -> None:
        pass
