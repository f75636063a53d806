"""From asyncpg.create_pool to aiopqr.create_pool: what changes in a service, and what does not.

    python examples/migrate_from_asyncpg.py

1. Remove user and password from the DSN; `credentials=` says where to find the two accounts.
2. Nothing else changes: an AlternatingPool is an asyncpg.Pool, with the same parameters, methods and connections.
3. You can drop a password callable, a retry around acquire(), `expire_connections()` after a rotation, and a restart.
   The main differences: `acquire()` waits at most 30 s by default (acquire_timeout=None removes the limit, as in
   asyncpg), and connections are replaced by age (max_lifetime), not after a number of queries (max_queries).

Both halves run on one embedded Postgres, and passwords change while they run.
"""

from __future__ import annotations

import asyncio
import json

import asyncpg

import aiopqr
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres


async def init(con: asyncpg.Connection) -> None:
    await con.set_type_codec("json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def service(pool: asyncpg.Pool) -> None:
    """The service itself stays as it is."""
    async with pool.acquire() as con, con.transaction():
        order = await con.fetchval("select json_build_object('order', 1, 'by', session_user)")
    print(type(pool).__name__, order)


async def before(database: RotatingPostgres) -> None:
    account = database.pair.odd
    assert account is not None
    async with asyncpg.create_pool(
        database.dsn,
        user=account.username,
        password=account.password.reveal(),
        min_size=1,
        max_size=5,
        init=init,
    ) as pool:
        await service(pool)
        await database.rotate("odd")
        await pool.expire_connections()
        try:
            await service(pool)
        except asyncpg.InvalidPasswordError as exc:
            print("asyncpg.create_pool, after the password was changed:", exc)


async def after(database: RotatingPostgres) -> None:
    async with aiopqr.create_pool(
        database.dsn,
        credentials=database.source,  # in a service: FileSource(path), SecretsManagerSource(...) or a function
        min_size=1,
        max_size=5,
        init=init,
    ) as pool:
        await service(pool)
        await database.rotate("odd")
        await pool.expire_connections()
        await service(pool)
        await database.rotate("even")
        await pool.expire_connections()
        await service(pool)


async def main() -> None:
    async with EmbeddedPostgres() as server:
        database = await RotatingPostgres.create(server)
        await before(database)
        await after(database)


if __name__ == "__main__":
    asyncio.run(main())
