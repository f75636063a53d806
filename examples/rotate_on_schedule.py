"""A rotator in Python, next to a pool: it does what `aiopqr rotate` does, for those who write their own scheduler.

    python examples/rotate_on_schedule.py

It runs on its own Postgres, with a lifetime of one second, so that you can watch the gates open.
"""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import aiopqr
from aiopqr.rotation import FileStore, RotationRefused, Rotator, Rules
from aiopqr.sources import FileSource
from aiopqr.testing import EmbeddedPostgres

LIFETIME, INTERVAL = 1.0, 0.2  # of the pool, in seconds; a service would use 1800 and 60


async def rotate(rotator: Rotator) -> None:
    """Rotate once, as soon as no gate objects. A scheduler would simply try again next time."""
    while True:
        try:
            rotation = await rotator.apply(await rotator.plan())
        except RotationRefused as exc:
            print(f"not yet: {exc.objections[0].gate}")
            await asyncio.sleep(0.5)
        else:
            print(f"{rotation.parity}: changed")
            return


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedPostgres() as server:
            path = Path(folder, "pair.json")
            await FileStore(path).create(await server.create_accounts(), changed_at=datetime.now(UTC))
            rotator = Rotator(
                admin=server.admin_connect,
                verify=server.dsn,  # as the applications connect: through PgBouncer, if they do
                store=FileStore(path),
                rules=Rules(max_lifetime=LIFETIME, refresh_interval=INTERVAL, margin=0.2),
                announce=2 * INTERVAL,  # for pools to step aside; by default, the interval plus 10 s
            )
            source = FileSource(path, interval=INTERVAL)
            async with aiopqr.create_pool(
                server.dsn, credentials=source, max_lifetime=LIFETIME, min_size=1, ssl=False
            ) as pool:
                for _ in range(3):
                    await rotate(rotator)
                    print(f"served all the same: {await pool.fetchval('SELECT 1')}")


if __name__ == "__main__":
    asyncio.run(main())
