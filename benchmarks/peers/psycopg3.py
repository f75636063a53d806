"""psycopg 3 and its pool: with a transaction around each use (its default), or in autocommit mode."""

from __future__ import annotations

from typing import Any

import psycopg
import psycopg_pool

from . import Operation, Options, Where
from .pooled import ROWS, SELECT, Pooled


def login(where: Where) -> dict[str, Any]:
    return {"user": where.odd.username, "password": where.odd.password}


class Pool(Pooled):
    """If passwords change, its ``kwargs`` is a callable that asks the store before each connect."""

    pool: psycopg_pool.AsyncConnectionPool[Any]

    async def open(self) -> None:
        self.pool = psycopg_pool.AsyncConnectionPool(
            self.where.dsn,
            kwargs=self._kwargs if self.options.store else {**login(self.where), **self.options.more},
            min_size=self.options.size,
            max_size=self.options.size,
            max_lifetime=self.options.lifetime or 3600.0,
            open=False,
        )
        await self.pool.open(wait=True)

    async def _kwargs(self) -> dict[str, Any]:
        assert self.options.store is not None
        return login(await self.options.store.fetch())

    async def close(self) -> None:
        await self.pool.close()

    def acquire(self) -> Any:
        return self.pool.connection()

    async def select_on(self, con: Any) -> object:
        return await (await con.execute(SELECT)).fetchone()

    async def rows_on(self, con: Any) -> object:
        return await (await con.execute(ROWS)).fetchall()


class Churn:
    def __init__(self, where: Where, options: Options) -> None:
        self._where = where

    async def open(self) -> None:
        pass

    def operation(self, name: str) -> Operation:
        return self.churn

    async def churn(self) -> None:
        con = await psycopg.AsyncConnection.connect(self._where.dsn, autocommit=True, **login(self._where))
        await (await con.execute(SELECT)).fetchone()
        await con.close()

    async def close(self) -> None:
        pass
