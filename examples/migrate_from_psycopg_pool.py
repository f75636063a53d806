"""From psycopg_pool.AsyncConnectionPool to aiopqr.create_pool, line by line.

    python examples/migrate_from_psycopg_pool.py

| psycopg_pool                                | aiopqr                                                     |
|---------------------------------------------|------------------------------------------------------------|
| AsyncConnectionPool(conninfo, kwargs=...)   | create_pool(dsn, credentials=...)                          |
| min_size, max_size, max_waiting, name       | the same                                                   |
| timeout=30                                  | acquire_timeout=30                                         |
| max_lifetime=3600, max_idle=600             | max_lifetime=1800, max_inactive_connection_lifetime=300    |
| configure=, reset=, check=                  | init=, reset=, none: idle connections are always checked   |
| open(wait=True), close(timeout=5)           | `async with`, close(timeout=5)                             |
| pool.connection(): commits at its end       | pool.acquire(): autocommit, so use con.transaction()       |
| %s and %(name)s, a cursor, fetchone()       | $1, the connection itself, fetchrow() and fetchval()       |
| PoolTimeout, TooManyRequests, PoolClosed    | AcquireTimeout, TooManyWaiting, PoolClosing                |
| get_stats()                                 | stats()                                                    |

Both halves do the same work on one embedded Postgres.
Needs: pip install 'aiopqr[testing]' 'psycopg[binary,pool]'
"""

from __future__ import annotations

import asyncio

from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

import aiopqr
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres


async def before(database: RotatingPostgres) -> list[dict[str, object]]:
    account = database.pair.odd
    assert account is not None
    async with AsyncConnectionPool(
        database.dsn,
        kwargs={"user": account.username, "password": account.password.reveal()},
        min_size=2,
        max_size=5,
        timeout=30.0,
        open=False,
    ) as pool:
        async with pool.connection() as con:  # a transaction, committed at the end of the block
            await con.execute("create table orders (id int, item text)")
            await con.cursor().executemany("insert into orders values (%s, %s)", [(1, "tea"), (2, "cake")])
        async with pool.connection() as con:
            cursor = con.cursor(row_factory=dict_row)
            await cursor.execute("select * from orders where id > %(id)s order by id", {"id": 0})
            return await cursor.fetchall()


async def after(database: RotatingPostgres) -> list[dict[str, object]]:
    async with aiopqr.create_pool(
        database.dsn,
        credentials=database.source,  # in a service: FileSource(path), SecretsManagerSource(...) or a function
        min_size=2,
        max_size=5,
        acquire_timeout=30.0,
    ) as pool:
        async with pool.acquire() as con, con.transaction():
            await con.execute("drop table orders; create table orders (id int, item text)")
            await con.executemany("insert into orders values ($1, $2)", [(1, "tea"), (2, "cake")])
        await database.rotate("odd")  # and nobody notices
        rows = await pool.fetch("select * from orders where id > $1 order by id", 0)
        return [dict(row) for row in rows]


async def main() -> None:
    async with EmbeddedPostgres() as server:
        database = await RotatingPostgres.create(server)
        old = await before(database)
        new = await after(database)
        print("psycopg_pool:", old)
        print("aiopqr:      ", new)
        assert old == new


if __name__ == "__main__":
    asyncio.run(main())
