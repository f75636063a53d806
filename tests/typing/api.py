"""Never run: type checkers read it, and report an ignored line that has no error."""

from typing import assert_type

import asyncpg

import aiopqr
from aiopqr import CredentialPair

odd, even = aiopqr.Credential("orders_odd", "1"), aiopqr.Credential("orders_even", "2")
CredentialPair(odd, even, active="odd")
CredentialPair(odd, even, active=aiopqr.Parity.EVEN)
CredentialPair(odd, None, last_resort=even)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
CredentialPair(odd, even, active="both")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
aiopqr.create_pol  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


async def fetch() -> CredentialPair:
    return CredentialPair(odd, even)


aiopqr.create_pool(credentials=fetch, max_lifetme=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
aiopqr.create_pool(credentials=fetch, session_reset="transacton")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
aiopqr.create_pool(credentials=fetch, prot=5432)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
aiopqr.AlternatingPool(credentials=fetch, max_lifetme=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


class Order(asyncpg.Record):
    """A record class of the user's."""


class Traced(asyncpg.Connection[Order]):
    """A connection class of the user's."""

    def trace(self) -> int:
        return 1


async def use() -> None:
    pool = aiopqr.create_pool("postgresql://host/db", credentials=fetch, max_lifetime=60.0, ssl="require")
    same: aiopqr.AlternatingPool = pool
    also: asyncpg.Pool[asyncpg.Record] = pool
    async with pool, pool.acquire() as con:
        assert_type(await con.fetchrow("select 1"), asyncpg.Record | None)
    del same, also

    own = aiopqr.create_pool(credentials=fetch, connection_class=Traced, record_class=Order)
    assert_type(own, aiopqr.AlternatingPool[Order, Traced])
    opened = await own
    traced = await opened.acquire(timeout=1.0)
    assert_type(traced.trace(), int)
    await opened.release(traced)

    async with aiopqr.Connector("postgresql://host/db", credentials=fetch) as connector:
        assert_type(await connector.connect(timeout=5.0), "asyncpg.Connection[asyncpg.Record]")
        await connector.connect(timout=5.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
