"""asyncpg's pool with what a careful user would write by hand: a ``connect=`` that alternates between two accounts."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from .plain_asyncpg import Pool as PlainPool


class Pool(PlainPool):
    """If an account is refused, it uses the other one, and fetches new passwords in the background."""

    async def open(self) -> None:
        self._known = await self.options.store.fetch() if self.options.store else self.where
        self._turn = 0
        self._fetching: asyncio.Task[None] | None = None
        await super().open()

    def login(self) -> dict[str, Any]:
        return {"connect": self._connect}

    async def _connect(self, *args: Any, **kwargs: Any) -> Any:
        turn = self._turn = self._turn + 1  # a copy: others connect while this one waits
        try:
            return await self._log_in(turn % 2, *args, **kwargs)
        except asyncpg.InvalidPasswordError:
            if self._fetching is None or self._fetching.done():
                self._fetching = asyncio.create_task(self._refresh())
            return await self._log_in((turn + 1) % 2, *args, **kwargs)

    async def _log_in(self, which: int, *args: Any, **kwargs: Any) -> Any:
        account = (self._known.even, self._known.odd)[which]
        return await asyncpg.connect(*args, user=account.username, password=account.password, **kwargs)

    async def _refresh(self) -> None:
        assert self.options.store is not None
        self._known = await self.options.store.fetch()

    async def close(self) -> None:
        if self._fetching:
            await asyncio.wait({self._fetching})
        await super().close()
