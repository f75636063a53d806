"""A service in ten lines, whose passwords may change at any time.

Runs as it stands on a Postgres of its own. On yours: DSN=postgresql://host/database CREDENTIALS=path.json, a file with
odd_username, odd_password, even_username, even_password and active_credential; see `aiopqr setup`.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager

import aiopqr
from aiopqr.sources import FileSource


async def service(dsn: str, credentials: object) -> None:
    async with aiopqr.create_pool(dsn, credentials=credentials, max_size=5) as pool:
        for _ in range(4):
            async with pool.acquire() as con:
                print("hello from", await con.fetchval("SELECT session_user"))
            await pool.expire_connections()  # only to see both accounts at once: it happens by itself, with time
        opened = {str(parity): account.opened for parity, account in pool.stats().accounts.items()}
        print("connections opened:", opened)


@asynccontextmanager
async def database():
    """Where the service runs: the environment says, or a Postgres is started for it."""
    if "DSN" in os.environ:
        yield os.environ["DSN"], FileSource(os.environ["CREDENTIALS"])
        return
    from aiopqr.testing import EmbeddedPostgres

    async with EmbeddedPostgres() as server:
        pair = await server.create_accounts()
        yield server.dsn, pair


async def main() -> None:
    async with database() as (dsn, credentials):
        await service(dsn, credentials)


if __name__ == "__main__":
    asyncio.run(main())
