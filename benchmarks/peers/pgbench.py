"""``pgbench -C``: a C client of the same server, for comparison. It runs in its own process and threads."""

from __future__ import annotations

import asyncio
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from aiopqr.testing import Binaries

from . import Operation, Options, Where


class Churn:
    """It does not run single operations: :meth:`run` lets pgbench do everything."""

    def __init__(self, where: Where, options: Options) -> None:
        self._where = where
        self._rate = 100.0  # connections per second: a guess at first, then the last run's
        self._program = Binaries.find(options.more.get("binaries", "embedded"))["pgbench"]
        if not Path(self._program).exists():
            raise FileNotFoundError(f"{self._program} is missing: install Postgres' client programs")

    async def open(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="aiopqr-bench-")
        self._script = Path(self._home.name) / "select.sql"
        self._script.write_text("SELECT 1;\n")
        # A file that only we can read, rather than the environment or the process list.
        self._passwords = Path(self._home.name) / "pgpass"
        self._passwords.touch(0o600)
        password = self._where.odd.password.replace("\\", "\\\\").replace(":", "\\:")
        self._passwords.write_text(f"*:*:*:*:{password}\n")

    def operation(self, name: str) -> Operation:
        raise NotImplementedError("pgbench runs by itself")

    async def run(self, tasks: int, seconds: float) -> dict[str, Any]:
        """Connect for about ``seconds``. Return the number of connections, the time they took, and pgbench's CPU."""
        before = os.times()
        process = await asyncio.create_subprocess_exec(
            *(self._program, "-n", "-C", "-c", str(tasks), "-j", str(tasks), "-f", str(self._script)),
            *("-t", str(max(math.ceil(seconds * self._rate / tasks), 2)), self._where.dsn),
            env={**os.environ, "PGUSER": self._where.odd.username, "PGPASSFILE": str(self._passwords)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = (text.decode() for text in await process.communicate())
        after = os.times()
        done = re.search(r"transactions actually processed: (\d+)", out)
        rate = re.search(r"^tps = ([\d.]+)", out, re.MULTILINE)
        if process.returncode or not done or not rate:
            raise RuntimeError(f"pgbench failed: {err.strip()[-500:]}")
        self._rate = float(rate[1])
        spent = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
        return {"operations": int(done[1]), "seconds": int(done[1]) / self._rate, "cpu": spent}

    async def close(self) -> None:
        self._home.cleanup()
