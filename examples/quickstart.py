"""A service in ten lines, whose passwords may change at any time.

It runs as it stands, on its own Postgres. To use yours, set DSN=postgresql://host/database and CREDENTIALS=path.json, a
file with odd_username, odd_password, even_username, even_password and active_credential (see `aiopqr setup`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiopqr
from aiopqr.sources import Credentials, FileSource


async def service(dsn: str, credentials: Credentials) -> None:
    async with aiopqr.create_pool(dsn, credentials=credentials, min_size=2, max_size=10) as pool:

        async def serve(request: int) -> None:
            async with pool.acquire() as con:
                user = await con.fetchval("SELECT session_user FROM pg_sleep(0.1)")
                print(f"request {request}: served as {user}")

        await asyncio.gather(*(serve(request) for request in range(4)))


@asynccontextmanager
async def database() -> AsyncIterator[tuple[str, Credentials]]:
    """Yield the DSN and credentials that the environment names, or else those of a Postgres that is started here."""
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
