"""A real Postgres server in a temporary directory, which is removed when the server is stopped.

:mod:`.cluster` creates its files, and :mod:`.binaries` finds its programs.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import random
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ..credentials import Secret
from . import cluster
from .binaries import Binaries, RunAs
from .errors import NotAvailable, NotSupported, ServerError
from .guarded import GuardedDirectory
from .server import PostgresServer, in_a_thread, reload

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 20.0
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# Outside the range that the system uses for outgoing connections, so our port stays free during a restart.
PORTS = range(15000, 32000)

NEED_A_RESTART = "SELECT 1 FROM pg_settings WHERE context = 'postmaster' AND name = ANY($1::text[])"


class EmbeddedPostgres(PostgresServer):
    """A real Postgres server on 127.0.0.1 and a Unix socket, both with SCRAM, in a temporary directory.

    ``binaries`` is ``"embedded"`` (Postgres 16), ``"embedded18"``, ``"system"``, or a directory with the programs.
    ``settings`` go to ``postgresql.conf``. If you are root, the server runs as the user ``run_as`` (default: nobody).

    Use it as a context manager, with ``async with`` or ``with``, or call :meth:`start` and :meth:`stop`, which block
    for about a second. The directory is removed when the server is stopped or the process ends, even by SIGKILL.

    Raises :class:`NotAvailable` if no server can run here, and :class:`ServerError`, with the end of the server's log,
    if the server did not start.
    """

    host = "127.0.0.1"
    admin = "postgres"

    def __init__(
        self, binaries: str | Path | Binaries = "embedded", *, run_as: str | None = None, **settings: object
    ) -> None:
        self.binaries = binaries if isinstance(binaries, Binaries) else Binaries.find(binaries)
        self.run_as = RunAs.choose(run_as)
        self.port = 0
        self.home: Path | None = None
        self._settings: dict[str, object] = dict(settings)
        self._hba: Sequence[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: GuardedDirectory | None = None

    def __repr__(self) -> str:
        state = f"on port {self.port}" if self.is_running else "stopped"
        return f"<{type(self).__name__} {self.version} {state}>"

    @property
    def version(self) -> str:
        return self.binaries.version

    @property
    def admin_password(self) -> Secret:
        return cluster.ADMIN_PASSWORD

    @property
    def is_running(self) -> bool:
        """Whether the server's process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, or None if the server is not running."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._home / "data"

    @property
    def log(self) -> Path:
        """The server's log file. Stopping the server removes it."""
        return self._home / "log"

    @property
    def _home(self) -> Path:
        if self.home is None:
            raise ServerError(f"{self!r} is not started")
        return self.home

    # Starting and stopping. start() and stop() block.

    def start(self) -> Self:
        """Create the server and wait until it accepts logins. This blocks; ``async with`` runs it in a thread."""
        if self.home is not None:
            raise ServerError(f"{self!r} has already been started")
        self._directory = GuardedDirectory(self.run_as)
        self.home = self._directory.path
        self.socket_dir = str(self.home)
        atexit.register(self.stop)
        try:
            self.binaries = cluster.reachable(self.binaries, self.run_as)
            self._create()
            self._listen()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove its directory. A second call does nothing."""
        if self._directory is None or not self._directory.is_ours:
            return
        atexit.unregister(self.stop)
        self._shut_down("fast")
        self._directory.remove()
        self._directory = self._process = self.home = self.socket_dir = self.ca_file = None

    async def halt(self, mode: str = "fast") -> None:
        if mode not in _SIGNALS:
            raise ValueError(f"mode must be one of {', '.join(_SIGNALS)}, not {mode!r}")
        await in_a_thread(functools.partial(self._shut_down, mode))

    async def resume(self) -> None:
        if not self.is_running:
            await in_a_thread(self._launch)

    # Configuration.

    async def configure(self, **settings: object) -> None:
        before, wanted = self._settings, self._settings | settings
        apply = self._reload
        if await self.execute(NEED_A_RESTART, list(settings)):
            apply = self.restart
        try:
            self._settings = {name: value for name, value in wanted.items() if value is not None}
            await apply()
        except ServerError:
            self._settings = before
            await apply()
            raise

    async def set_hba(self, lines: Sequence[str] | None) -> None:
        before, self._hba = self._hba, lines
        try:
            await self._reload()
        except ServerError:
            self._hba = before
            await self._reload()
            raise

    async def enable_tls(self) -> str:
        if not await self.fetchval("SELECT setting FROM pg_settings WHERE name = 'ssl_library'"):
            raise NotSupported(f"{self!r} was built without TLS: try binaries='system', which usually has it")
        from .tls import write_certificates

        certificates = await in_a_thread(functools.partial(write_certificates, self._home / "tls"))
        self.run_as.own(self._home / "tls")
        await self.configure(ssl=True, ssl_cert_file=certificates.cert, ssl_key_file=certificates.key)
        self.ca_file = certificates.ca
        return certificates.ca

    async def _reload(self) -> None:
        """Write the configuration and make the server read it. Returns when new sessions use it."""
        cluster.write_configuration(self.data, self.run_as, self._all_settings(), self.admin, self._hba)
        if self.is_running:
            await reload(self)

    def _all_settings(self) -> dict[str, object]:
        return {
            "port": self.port,
            "listen_addresses": self.host,
            "unix_socket_directories": self._home,
        } | self._settings

    def _log(self) -> bytes:
        return self.log.read_bytes()

    # The process.

    def _create(self) -> None:
        """Fill the data directory."""
        cluster.create(self.binaries, self.data, self.run_as, self.admin)

    def _listen(self) -> None:
        """Launch the server on a free port. If another process takes that port first, try the next one."""
        for _ in range(5):
            self.port = free_port(self.host)
            with contextlib.suppress(_PortTaken):
                self._launch()
                return
        raise NotAvailable(f"no free port between {PORTS.start} and {PORTS.stop}")

    def _launch(self) -> None:
        cluster.write_configuration(self.data, self.run_as, self._all_settings(), self.admin, self._hba)
        status = self.data / "postmaster.pid"
        status.unlink(missing_ok=True)  # left by a crash: a live server in this directory would be our child
        with self.log.open("ab") as log:
            mark = log.tell()
            self._process = subprocess.Popen(
                [self.binaries["postgres"], "-D", str(self.data)],
                cwd="/",
                stdout=log,
                stderr=log,
                **self.run_as.popen(),
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not cluster.is_ready(status):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._shut_down("immediate")
                text = self.log_text(mark)
                if "could not bind" in text:
                    raise _PortTaken(f"another process took port {self.port} of {self!r}")
                raise ServerError(
                    f"Postgres {self.version} did not start within {_START_TIMEOUT:.0f} s. The end of its log:\n"
                    f"{text[-3000:]}\nIf none of your settings is the cause, try {self.binaries['postgres']} by hand."
                )
            time.sleep(0.005)

    def _shut_down(self, mode: str) -> None:
        """Stop the process in the given mode; if that takes too long, with SIGQUIT and then with SIGKILL."""
        process = self._process
        if process is None:
            return
        for number in (_SIGNALS[mode], signal.SIGQUIT, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT)
                return


class _PortTaken(ServerError):
    pass


def free_port(host: str) -> int:
    """A port that is free at the moment, or 0 if none was found."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    return 0
