"""SQLAlchemy's async engine on asyncpg: with a transaction around each use (its default), or in autocommit mode."""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .pooled import ROWS, SELECT, Pooled

_SELECT, _ROWS = text(SELECT), text(ROWS)


class Pool(Pooled):
    """If passwords change, its ``async_creator`` asks the store before each connect."""

    engine: AsyncEngine

    async def open(self) -> None:
        self.engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            pool_size=self.options.size,
            max_overflow=0,
            pool_recycle=self.options.lifetime or -1,
            **self.options.more,
        )

    async def _connect(self) -> Any:
        where = await self.options.store.fetch() if self.options.store else self.where
        return await asyncpg.connect(where.dsn, user=where.odd.username, password=where.odd.password)

    async def close(self) -> None:
        await self.engine.dispose()

    def acquire(self) -> Any:
        return self.engine.connect()

    async def select_on(self, con: Any) -> object:
        return (await con.execute(_SELECT)).scalar()

    async def rows_on(self, con: Any) -> object:
        return (await con.execute(_ROWS)).fetchall()
