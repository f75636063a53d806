"""A streaming standby of a test server, which can be promoted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from aiopqr.testing import EmbeddedPostgres, NotAvailable, ServerError


class Standby(EmbeddedPostgres):
    """A hot standby of ``primary``, made with pg_basebackup. It accepts logins once it is started, and is read-only."""

    def __init__(self, primary: EmbeddedPostgres, **settings: object) -> None:
        super().__init__(primary.binaries, run_as=primary.run_as.name if primary.run_as.is_other else None, **settings)
        self.primary = primary

    def _create(self) -> None:
        _copy(self.primary, self)

    async def catch_up(self) -> None:
        """Wait until everything that the primary has written is visible here."""
        position = await self.primary.fetchval("SELECT pg_current_wal_insert_lsn()::text")
        connection = await self.admin_connect()
        try:
            while not await connection.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position):
                await connection.execute("SELECT pg_sleep(0.01)")
        finally:
            await connection.close()

    async def promote(self) -> None:
        """Make it a primary. Returns when it accepts writes."""
        if not await self.fetchval("SELECT pg_promote()"):
            raise ServerError(f"{self!r} was not promoted. The end of its log:\n{self.log_text()[-3000:]}")


def rejoin(server: EmbeddedPostgres, leader: EmbeddedPostgres) -> None:
    """Make a former primary, which is stopped, a standby of ``leader``, with a new copy of the leader's files."""
    shutil.rmtree(server.data)
    _copy(leader, server)


def _copy(leader: EmbeddedPostgres, follower: EmbeddedPostgres) -> None:
    program = Path(follower.binaries["pg_basebackup"])
    if not program.exists():
        raise NotAvailable(f"a standby needs pg_basebackup, which is not in {program.parent}")
    way = _way_to(leader, follower)
    made = subprocess.run(
        [program, "-D", follower.data, "-d", way, "-X", "stream", "-c", "fast", "-N"],
        cwd="/",
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **follower.run_as.popen(),
    )
    if made.returncode != 0:
        raise ServerError(f"pg_basebackup of {leader!r} failed:\n{made.stdout[-3000:]}")
    signal = follower.data / "standby.signal"
    signal.touch()
    follower.run_as.own(signal)
    follower._settings |= {"primary_conninfo": way, "wal_retrieve_retry_interval": "100ms"}


def _way_to(leader: EmbeddedPostgres, follower: EmbeddedPostgres) -> str:
    """How ``follower`` reaches its leader, in libpq's syntax."""
    passfile = follower._home / "passfile"
    passfile.touch(0o600)
    passfile.write_text(f"*:*:*:*:{leader.admin_password.reveal()}\n")
    follower.run_as.own(passfile)
    return f"host={leader.host} port={leader.port} user={leader.admin} passfile={passfile}"
