"""The servers that the benchmarks run against, and what the report says about the machine."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiopqr import Credential
from aiopqr._login.scram import verifier
from aiopqr.testing import EmbeddedPostgres, NotAvailable

from .peers import Account, Where

TRUSTED = "trusted"  # a database that asks for no password
SLOW_ITERATIONS = 4096 * 16


@dataclass(frozen=True, slots=True)
class Stage:
    """A server, and its two accounts."""

    server: EmbeddedPostgres
    where: Where

    @property
    def trusted(self) -> Where:
        return replace(self.where, database=TRUSTED)

    def server_cpu(self) -> float:
        """The CPU time, in seconds, of the server and of all its ended sessions; 0 without /proc."""
        stat = Path(f"/proc/{self.server.pid}/stat")
        if not stat.exists():
            return 0.0
        times = stat.read_text().rpartition(")")[2].split()[11:15]  # user and system time, its own and its children's
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    async def set_password(self, where: Where, parity: str, password: str) -> Where:
        """Change one password in the database, and return ``where`` with that password."""
        account = getattr(where, parity)
        await self.server.set_passwords(Credential(account.username, password))
        newer: dict[str, Any] = {parity: Account(account.username, password)}
        return replace(where, **newer)

    async def restore(self) -> Where:
        """Set both passwords back to what they were at first."""
        for account in (self.where.odd, self.where.even):
            await self.server.set_passwords(Credential(account.username, account.password))
        return self.where

    async def slow_accounts(self) -> Where:
        """Create two more accounts, whose keys take 16 times as long to derive."""
        accounts: dict[str, Any] = {}
        for parity in ("odd", "even"):
            account = Account(f"slow_{parity}", getattr(self.where, parity).password)
            proof = verifier(account.password, iterations=SLOW_ITERATIONS)
            await self.server.execute(f"CREATE ROLE {account.username} LOGIN PASSWORD '{proof}'")
            accounts[parity] = account
        return replace(self.where, **accounts)


@asynccontextmanager
async def stage(*, tls: bool = False, max_connections: int = 200) -> AsyncIterator[Stage]:
    """Start a server. With ``tls``, it is the system's Postgres, since the embedded one is built without TLS."""
    binaries = "system" if tls else "embedded"
    try:
        server = await EmbeddedPostgres(binaries, max_connections=max_connections).__aenter__()
    except NotAvailable as exc:
        raise NotAvailable(f"{exc}. To measure without TLS, use --no-tls") if tls else exc from None
    try:
        ca = await server.enable_tls() if tls else None
        pair = await server.create_accounts()
        await server.create_database(TRUSTED)
        await server.set_hba([f"host {TRUSTED} all all trust", "host all all all scram-sha-256"])
        odd, even = (Account(one.username, one.password.reveal()) for one in pair.credentials())
        yield Stage(server, Where(server.host, server.port, "postgres", odd, even, ca))
    finally:
        await server.aclose()


def surroundings() -> dict[str, Any]:
    """What the figures depend on, besides the code."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    names = ("aiopqr", "asyncpg", "psycopg", "psycopg-pool", "SQLAlchemy", "uvloop")
    return {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()}",
        "cpus": os.cpu_count(),
        "cpu": model,
        "load": os.getloadavg()[0],
        "packages": {name: version(name) for name in names},
        "loop": type(asyncio.get_running_loop()).__name__,
    }
