"""Credentials in a mounted Kubernetes Secret, which the kubelet updates while the service runs.

    python examples/kubernetes_file.py

In a pod, mount the Secret as a volume (a `subPath` mount is never updated), with the keys odd_username, odd_password,
even_username, even_password and active_credential, and pass the folder to FileSource. The second half of this file
plays the kubelet, changes passwords on its own Postgres, and exits.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import aiopqr
from aiopqr.events import Refreshed
from aiopqr.sources import FileSource
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres


def make_pool(dsn: str, mounted: Path) -> aiopqr.AlternatingPool:
    # The folder is read every second, so nothing has to be restarted when the Secret changes.
    return aiopqr.create_pool(dsn, credentials=FileSource(mounted, interval=1.0), min_size=2, max_size=5)


class Kubelet:
    """Writes a mounted Secret as the kubelet does: a folder for each version, and one symlink that is swapped."""

    def __init__(self, mounted: Path) -> None:
        self._mounted = mounted
        self._version = 0

    def write(self, pair: aiopqr.CredentialPair) -> None:
        assert pair.odd is not None
        assert pair.even is not None
        keys = {
            "odd_username": pair.odd.username,
            "odd_password": pair.odd.password.reveal(),
            "even_username": pair.even.username,
            "even_password": pair.even.password.reveal(),
            "active_credential": str(pair.active),
        }
        self._version += 1
        folder = self._mounted / f"..version_{self._version}"
        folder.mkdir()
        for key, value in keys.items():
            (folder / key).write_text(value)
        swap = self._mounted / "..data_tmp"
        swap.symlink_to(folder.name)
        swap.replace(self._mounted / "..data")
        for key in keys:
            if not (self._mounted / key).is_symlink():
                (self._mounted / key).symlink_to(Path("..data") / key)


async def show(database: RotatingPostgres, mounted: Path) -> None:
    kubelet = Kubelet(mounted)
    kubelet.write(database.pair)
    print("mounted:", *sorted(os.listdir(mounted)))

    refreshed = asyncio.Event()
    async with make_pool(database.dsn, mounted) as pool:
        pool.events.add(lambda event: refreshed.set() if isinstance(event, Refreshed) else None)
        for account in ("odd", "even", "odd"):
            await database.rotate(account)
            print(f"the {account} password has changed; new connections use", await new_connections(pool))
            refreshed.clear()
            kubelet.write(database.pair)
            await refreshed.wait()
            print("the Secret is swapped; new connections are of", await new_connections(pool))


async def new_connections(pool: aiopqr.AlternatingPool) -> list[str]:
    """Open two new connections, and return which accounts they use."""
    await pool.expire_connections()
    async with pool.acquire() as one, pool.acquire() as two:
        users = {await con.fetchval("select session_user") for con in (one, two)}
    return sorted(user.rpartition("_")[2] for user in users)


async def main() -> None:
    with tempfile.TemporaryDirectory() as mounted:
        async with EmbeddedPostgres() as server:
            await show(await RotatingPostgres.create(server), Path(mounted))


if __name__ == "__main__":
    asyncio.run(main())
