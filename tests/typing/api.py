"""Never run: type checkers read it, and report an ignored line that is no error."""

import asyncpg

import aiopqr
from aiopqr import CredentialPair

odd, even = aiopqr.Credential("orders_odd", "1"), aiopqr.Credential("orders_even", "2")
CredentialPair(odd, even, active="odd")
CredentialPair(odd, even, active=aiopqr.Parity.EVEN)
CredentialPair(odd, even, active="both")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
aiopqr.create_pol  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


async def fetch() -> CredentialPair:
    return CredentialPair(odd, even)


async def use() -> None:
    pool = aiopqr.create_pool("postgresql://host/db", credentials=fetch, max_lifetime=60.0, ssl="require")
    async with pool, pool.acquire() as con:
        row: asyncpg.Record | None = await con.fetchrow("select 1")
        del row
