"""Runs `aiopqr rotate` on twenty processes with pools, and counts the failed logins in the server's log.

    python -m benchmarks.rotating_fleet                    # 20 processes, 2 rotations, announced
    python -m benchmarks.rotating_fleet --announce 0       # the same without an announcement

Exit code 0: no login was refused, and no operation failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiopqr
from aiopqr.rotation import FileStore
from aiopqr.sources import FileSource
from aiopqr.testing import EmbeddedPostgres

INTERVAL, LIFETIME = 2.0, 1.0  # of the pools, in seconds


async def work(dsn: str, path: str) -> None:
    """Run one process of the fleet: query until standard input has a line, then print a line of JSON."""
    counts = {"operations": 0, "errors": 0}
    closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    source = FileSource(path, interval=INTERVAL)
    async with aiopqr.create_pool(
        dsn, credentials=source, min_size=1, max_size=2, max_lifetime=LIFETIME, ssl=False
    ) as pool:
        print("ready", flush=True)
        while not closed.done():
            try:
                await pool.fetchval("SELECT 1")
                counts["operations"] += 1
            except Exception as exc:
                print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
                counts["errors"] += 1
            await asyncio.sleep(0.05)
    print(json.dumps(counts), flush=True)


async def start(dsn: str, path: Path) -> asyncio.subprocess.Process:
    """Start one process of the fleet."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __spec__.name, "--worker", dsn, str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def rotate(server: EmbeddedPostgres, dsn: str, path: Path, announce: float) -> None:
    """Rotate once, from the command line, as soon as the gates allow it."""
    admin = server.dsn.replace("//", f"//{server.admin}@", 1)
    times = [f"--max-lifetime={LIFETIME}", f"--refresh-interval={INTERVAL}", "--margin=3", f"--announce={announce}"]
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiopqr", "rotate", "--admin", admin, "--dsn", dsn, "--file", str(path), *times),
            env={**os.environ, "AIOPQR_ADMIN_PASSWORD": server.admin_password.reveal()},
        )
        code = await process.wait()
        if code != 3:
            assert code == 0, f"aiopqr rotate: exit code {code}"
            return
        await asyncio.sleep(1.0)


async def run(processes: int, rotations: int, announce: float) -> bool:
    """Run the whole fleet, and return whether no process noticed anything."""
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedPostgres() as server:
            path = Path(folder, "pair.json")
            pair = await server.create_accounts("app_odd", "app_even", owner="app", database="app")
            await FileStore(path).create(pair, changed_at=datetime.now(UTC) - timedelta(hours=1))
            dsn = server.dsn_of("app")
            fleet = [await start(dsn, path) for _ in range(processes)]
            for process in fleet:
                assert process.stdout
                assert await process.stdout.readline() == b"ready\n"
            mark = server.mark()
            for _ in range(rotations):
                await rotate(server, dsn, path, announce)
            await asyncio.sleep(2 * INTERVAL)
            results = [json.loads((await process.communicate(b"\n"))[0]) for process in fleet]
            refused = server.failed_logins(mark)
    operations, errors = (sum(result[key] for result in results) for key in ("operations", "errors"))
    print(
        f"{processes} processes, {rotations} rotations, announced {announce:g} s ahead: {refused} failed logins, "
        f"{operations} operations, {errors} errors"
    )
    return not refused and not errors


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--rotations", type=int, default=2)
    parser.add_argument("--announce", type=float, default=INTERVAL + 4.0)
    parser.add_argument("--worker", nargs=2, metavar=("DSN", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        asyncio.run(work(*given.worker))
    elif not asyncio.run(run(given.processes, given.rotations, given.announce)):
        sys.exit(1)


if __name__ == "__main__":
    main()
