"""A streaming standby of a test server, which can be promoted."""

from __future__ import annotations

import subprocess

from aiopqr.testing import EmbeddedPostgres, ServerError


class Standby(EmbeddedPostgres):
    """A hot standby of ``primary``, made with pg_basebackup. It takes logins as soon as it is started, read only."""

    def __init__(self, primary: EmbeddedPostgres, **settings: object) -> None:
        super().__init__(primary.binaries, run_as=primary.run_as.name if primary.run_as.is_other else None, **settings)
        self.primary = primary

    def _create(self) -> None:
        source = _way_to(self.primary, self)
        command = [
            self.binaries["pg_basebackup"],
            "-D",
            str(self.data),
            "-d",
            source,
            "-X",
            "stream",
            "-c",
            "fast",
            "-N",
        ]
        made = subprocess.run(
            command,
            cwd="/",
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **self.run_as.popen(),
        )
        if made.returncode != 0:
            raise ServerError(f"pg_basebackup of {self.primary!r} failed:\n{made.stdout[-3000:]}")
        follow(self, self.primary)

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
        """Make it a primary; returns when it takes writes."""
        if not await self.fetchval("SELECT pg_promote()"):
            raise ServerError(f"{self!r} was not promoted. The end of its log:\n{self.log_text()[-3000:]}")


def follow(server: EmbeddedPostgres, leader: EmbeddedPostgres) -> None:
    """Have ``server`` start as a standby of ``leader``.

    It must not run. If it was a primary, it must have been shut down in order before the leader was promoted: only then
    has it nothing that the leader does not have.
    """
    signal = server.data / "standby.signal"
    signal.touch()
    server.run_as.own(signal)
    server._settings |= {"primary_conninfo": _way_to(leader, server), "wal_retrieve_retry_interval": "100ms"}


def _way_to(leader: EmbeddedPostgres, follower: EmbeddedPostgres) -> str:
    """What leads ``follower`` to its leader, as libpq reads it."""
    passfile = follower._home / "passfile"
    passfile.touch(0o600)
    passfile.write_text(f"*:*:*:*:{leader.admin_password.reveal()}\n")
    follower.run_as.own(passfile)
    return f"host={leader.host} port={leader.port} user={leader.admin} passfile={passfile}"
