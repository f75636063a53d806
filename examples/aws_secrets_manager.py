"""A service that reads its accounts from AWS Secrets Manager while their passwords are rotated.

    python examples/aws_secrets_manager.py

This needs only `pip install 'aiopqr[aws,testing]' 'moto[server]'`: it starts its own Postgres and Secrets Manager, and
rotates both accounts under load. If you set these two variables, it connects to yours instead, and changes nothing:

    AIOPQR_SECRET=prod/orders AIOPQR_DSN='postgresql://db.internal/orders?sslmode=verify-full' \\
        python examples/aws_secrets_manager.py
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from datetime import UTC, datetime, timedelta

import aiopqr
from aiopqr.rotation.gates import Rules
from aiopqr.rotation.rotator import Rotator
from aiopqr.rotation.stores.aws import SecretsManagerStore
from aiopqr.sources import SecretsManagerSource


async def main() -> None:
    if secret := os.environ.get("AIOPQR_SECRET"):
        # This is all that an application needs. Without a DSN, the pool uses the secret's host, port and dbname.
        async with aiopqr.create_pool(
            os.environ.get("AIOPQR_DSN"),
            credentials=SecretsManagerSource(secret, start_spread=0.0),
            min_size=4,
            max_size=4,
        ) as pool:
            print("connections by account:", dict(await by_account(pool, 4)))
    else:
        await rehearse()


async def rehearse() -> None:
    """Do the same with local servers, and rotate each account."""
    from aiopqr.testing import EmbeddedPostgres
    from aiopqr.testing.aws import EmbeddedSecretsManager

    with EmbeddedSecretsManager() as aws:
        async with EmbeddedPostgres() as server, SecretsManagerStore("prod/orders", **aws.options) as store:
            pair = await server.create_accounts("orders_odd", "orders_even", owner="orders", database="orders")
            await store.create(pair, changed_at=datetime.now(UTC) - timedelta(days=1))

            dsn, rules = server.dsn_of("orders"), Rules(max_lifetime=1.0, refresh_interval=0.5, margin=0.5)
            rotator = Rotator(admin=server.admin_dsn(), store=store, verify=dsn, rules=rules, announce=1.0)
            source = SecretsManagerSource("prod/orders", interval=0.5, start_spread=0.0, **aws.options)
            async with aiopqr.create_pool(dsn, credentials=source, max_lifetime=1.0, min_size=4, max_size=4) as pool:
                print("before:", dict(await by_account(pool, 4)))
                async with asyncio.TaskGroup() as tasks:
                    work = Work(pool)
                    tasks.create_task(work.run())
                    for _ in range(2):
                        while (plan := await rotator.plan()).refusals:  # noqa: ASYNC110 - the second waits for pools
                            await asyncio.sleep(0.5)
                        rotation = await rotator.apply(plan)
                        print(f"the password of {rotation.username} was changed")
                    work.enough = True
                print(f"after: {dict(await by_account(pool, 4))}; {work.queries} queries, {work.errors} errors")
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


async def by_account(pool: aiopqr.AlternatingPool, connections: int) -> Counter[str]:
    """Hold several connections at once, and ask each which account it uses."""
    ready = asyncio.Barrier(connections)

    async def ask() -> str:
        async with pool.acquire() as con:
            await ready.wait()
            user: str = await con.fetchval("SELECT session_user")
            return user

    return Counter(await asyncio.gather(*(ask() for _ in range(connections))))


if __name__ == "__main__":
    asyncio.run(main())
