"""A real PgBouncer in front of a test server."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

from aiopqr.credentials import Credential
from aiopqr.testing import NotAvailable, PostgresServer, ServerError
from aiopqr.testing.binaries import RunAs, workspace
from aiopqr.testing.server import in_a_thread

# The shell stops PgBouncer and removes its files when its input closes, no matter how the tests ended.
_GUARDED = '"$1" "$2/pgbouncer.ini" & read -r _; kill -INT $!; wait; rm -rf "$2"'


class PgBouncer:
    """PgBouncer in ``transaction`` or ``session`` mode, with SCRAM towards clients and server.

    It knows passwords by asking the server (``auth_query``, as the superuser), or, with ``userlist``, only those.
    It reaches the server at its own address, or at ``by_way_of``. With ``logs_in_as``, all its connections to it are of
    that account, which must need no password.
    ``settings`` go to its ``[pgbouncer]`` section. Raises :class:`NotAvailable` if it is not installed.
    """

    def __init__(
        self,
        server: PostgresServer,
        *,
        pool_mode: str = "transaction",
        userlist: tuple[Credential, ...] | None = None,
        logs_in_as: str | None = None,
        by_way_of: tuple[str, int] | None = None,
        **settings: object,
    ) -> None:
        self.server = server
        self.host, self.port = "127.0.0.1", 0
        self.home: Path | None = None
        self._userlist = userlist
        self._logs_in_as = logs_in_as
        self._way = by_way_of or (server.host, server.port)
        self._settings = {"pool_mode": pool_mode, **settings}
        self._run_as = RunAs.choose()
        self._process: subprocess.Popen[bytes] | None = None
        found = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
        if found is None:
            raise NotAvailable("PgBouncer is not installed: apt-get install pgbouncer")
        self._program = found

    def start(self) -> Self:
        """Start it and wait until it accepts connections. This blocks."""
        self.home = workspace(self._run_as)
        try:
            # Another process may take a port before we do: PgBouncer then exits, and we try the next.
            for self.port in random.sample(range(15000, 32000), 5):
                if self._launch():
                    return self
            raise ServerError(f"PgBouncer did not start:\n{self.log_text()[-3000:]}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it. A second call does nothing."""
        self._end()
        if self.home is not None:
            shutil.rmtree(self.home, ignore_errors=True)
            self.home = None

    async def __aenter__(self) -> Self:
        try:
            return await in_a_thread(self.start)
        except asyncio.CancelledError:
            await in_a_thread(self.stop)
            raise

    async def __aexit__(self, *exc: object) -> None:
        await in_a_thread(self.stop)

    def dsn_of(self, database: str) -> str:
        """The DSN of ``database`` through PgBouncer, with neither user nor password."""
        return f"postgresql://{self.host}:{self.port}/{database}"

    def log_text(self) -> str:
        """Its log since it was started."""
        log = self._home / "log"
        return log.read_text() if log.exists() else ""

    @property
    def _home(self) -> Path:
        if self.home is None:
            raise ServerError("this PgBouncer is not started")
        return self.home

    def _write_files(self) -> None:
        known = self._userlist
        if known is None:
            known = (Credential(self.server.admin, self.server.admin_password),)
        users = "".join(f"{_quoted(one.username)} {_quoted(one.password.reveal())}\n" for one in known)
        settings: dict[str, object] = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self._home / "userlist.txt",
            "logfile": "",
            "ignore_startup_parameters": "extra_float_digits",
            **self._settings,
        }
        databases = "* = host={} port={}".format(*self._way)
        if self._logs_in_as is not None:
            databases += f" user={self._logs_in_as}"
        if self._userlist is None:
            databases += f" auth_user={self.server.admin}"
            settings["auth_query"] = "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1"
        lines = [f"{key} = {value}" for key, value in settings.items() if value is not None]
        for name, text in (
            ("userlist.txt", users),
            ("pgbouncer.ini", "\n".join(["[databases]", databases, "[pgbouncer]", *lines, ""])),
        ):
            path = self._home / name
            path.touch(0o600)
            path.write_text(text)
            self._run_as.own(path)

    def _launch(self) -> bool:
        self._write_files()
        with (self._home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDED, "sh", self._program, str(self._home)],
                cwd="/",
                stdout=log,
                stderr=log,
                **{**self._run_as.popen(), "stdin": subprocess.PIPE},
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            text = self.log_text()
            if "process up" in text:
                return True
            if (
                "FATAL" in text
                or "cannot bind" in text
                or "unable to listen" in text
                or self._process.poll() is not None
            ):
                break
            time.sleep(0.01)
        self._end()
        return False

    def _end(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
