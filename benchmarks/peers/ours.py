"""aiopqr: the pool, in each way of resetting a session, and the connector."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import asyncpg

import aiopqr

from . import Operation, Options, Where
from .pooled import ROWS, SELECT, Pooled


def pair_of(where: Where) -> aiopqr.CredentialPair:
    odd, even = (aiopqr.Credential(account.username, account.password) for account in (where.odd, where.even))
    return aiopqr.CredentialPair(odd=odd, even=even)


class _Source:
    """The store, polled every 60 seconds, as aiopqr does by default."""

    interval = 60.0

    def __init__(self, options: Options) -> None:
        self._store = options.store

    async def fetch(self) -> aiopqr.CredentialPair:
        assert self._store is not None
        return pair_of(await self._store.fetch())


class Pool(Pooled):
    pool: aiopqr.AlternatingPool

    async def open(self) -> None:
        more = dict(self.options.more)
        lifetime = 0.0 if more.pop("no_lifetime", False) else self.options.lifetime
        self.pool = await aiopqr.create_pool(
            self.where.dsn,
            credentials=_Source(self.options) if self.options.store else pair_of(self.where),
            min_size=self.options.size,
            max_size=self.options.size,
            max_lifetime=lifetime,
            **more,
        )

    async def close(self) -> None:
        await self.pool.close()

    def acquire(self) -> Any:
        return self.pool.acquire()

    async def select_on(self, con: Any) -> object:
        return await con.fetchval(SELECT)

    async def rows_on(self, con: Any) -> object:
        return await con.fetch(ROWS)


class LeastReset(Pool):
    """The least that resetting a session costs: its query is written to other sockets, and the answers are dropped.

    So this is a lower bound, and not a way to reset sessions.
    """

    async def open(self) -> None:
        await super().open()
        account = self.where.odd
        self._others: list[Any] = [
            await asyncpg.connect(self.where.dsn, user=account.username, password=account.password)
            for _ in range(self.options.size)
        ]
        query = self._others[0].get_reset_query().encode() + b"\0"
        self._message = b"Q" + (len(query) + 4).to_bytes(4, "big") + query
        for con in self._others:
            con._transport.set_protocol(_Deaf())
        self._transports = itertools.cycle([con._transport for con in self._others])

    async def select(self) -> None:
        await super().select()
        next(self._transports).write(self._message)

    async def close(self) -> None:
        for con in self._others:
            con.terminate()
        await super().close()


class _Deaf(asyncio.Protocol):
    """Drops what it receives."""


class Churn:
    def __init__(self, where: Where, options: Options) -> None:
        self._connector = aiopqr.Connector(where.dsn, credentials=pair_of(where))

    async def open(self) -> None:
        await self._connector.start()

    def operation(self, name: str) -> Operation:
        return self.churn

    async def churn(self) -> None:
        con = await self._connector.connect()
        await con.fetchval(SELECT)
        await con.close()

    async def close(self) -> None:
        await self._connector.close()
