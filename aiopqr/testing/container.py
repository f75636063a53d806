"""A Postgres server in a Docker container."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import re
import secrets
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import asyncpg

from ..credentials import Secret
from . import cluster
from .errors import NotAvailable, ServerError
from .postgres import NEED_A_RESTART, PORTS, free_port
from .server import PostgresServer, in_a_thread, reload, run_apart

_START_TIMEOUT = 60.0
_LOG_TIMEOUT = 10.0
_SIGNALS = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}
_NO_LOGIN_YET = (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.InterfaceError)


class ContainerPostgres(PostgresServer):
    """A Postgres server in a container, run by ``testcontainers``. Needs Docker.

    ``image`` must behave like the official ``postgres`` images. The default is the environment variable
    ``AIOPQR_TEST_IMAGE`` or else ``postgres:17-alpine``. The server is reached on 127.0.0.1, through Docker's proxy.
    With ``own_network``, the container gets a separate network instead of Docker's default bridge, like a server on
    another host.

    Raises :class:`NotAvailable` if Docker does not answer or does not have the image, and :class:`ServerError`, with
    the end of the server's log, if the server did not start.
    """

    host = "127.0.0.1"
    admin = "postgres"

    def __init__(self, image: str | None = None, *, own_network: bool = False) -> None:
        self.image = image or os.environ.get("AIOPQR_TEST_IMAGE") or "postgres:17-alpine"
        self.port = 0
        self._own_network = own_network
        self._network: Any = None
        self._container: Any = None
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._password = Secret(secrets.token_urlsafe(24))
        self._version = "of unknown version"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._version} of {self.image} on port {self.port}>"

    @property
    def version(self) -> str:
        return self._version

    @property
    def admin_password(self) -> Secret:
        return self._password

    # Starting and stopping. start() and stop() block.

    def start(self) -> Self:
        for _ in range(5):
            self.port = free_port(self.host)
            self._container = container_of(self.image, {5432: self.port}, self._environment())
            try:
                if self._own_network:
                    self._network = new_network()
                    self._container.with_network(self._network)
                self._container.start()
                self._version = str(run_apart(self._answer())).split()[0]
            except BaseException as exc:
                self.stop()
                if not re.search("already allocated|already in use", str(exc)):
                    raise
            else:
                return self
        raise NotAvailable(f"no free port between {PORTS.start} and {PORTS.stop}")

    def _environment(self) -> dict[str, str]:
        return {
            "POSTGRES_PASSWORD": self._password.reveal(),
            "POSTGRES_HOST_AUTH_METHOD": "scram-sha-256",
            "POSTGRES_INITDB_ARGS": "--auth=scram-sha-256 --no-sync",
        }

    def stop(self) -> None:
        if self._container is not None:
            self._container.stop()
            self._container = self.ca_file = None
        if self._network is not None:
            self._network.remove()
            self._network = None
        if self._files is not None:
            self._files.cleanup()
            self._files = None

    async def halt(self, mode: str = "fast") -> None:
        if mode not in _SIGNALS:
            raise ValueError(f"mode must be one of {', '.join(_SIGNALS)}, not {mode!r}")
        await in_a_thread(functools.partial(self._wrapped.kill, _SIGNALS[mode]))
        await in_a_thread(self._wrapped.wait)

    async def resume(self) -> None:
        await in_a_thread(self._wrapped.start)
        await self._answer()

    async def cut_off(self) -> None:
        """Disconnect the running server from its network, so that nobody can reach it until :meth:`join`."""
        await in_a_thread(lambda: self._on_its_network("disconnect"))

    async def join(self) -> None:
        """Connect the server to its network again, after :meth:`cut_off`."""
        await in_a_thread(lambda: self._on_its_network("connect"))
        await self._answer()

    def _on_its_network(self, action: str) -> None:
        network = self._wrapped.client.networks.get(self._network.name if self._network else "bridge")
        getattr(network, action)(self._wrapped)

    async def _answer(self) -> Any:
        """Wait until the server accepts logins, and return its version.

        The image starts the server twice, the first time without TCP. Until the server listens, Docker's proxy accepts
        connections and closes them.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                return await self.fetchval("SHOW server_version")
            except _NO_LOGIN_YET as exc:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"{self!r} accepted no login within {_START_TIMEOUT:.0f} s. The end of its log:\n"
                        f"{self._written().decode(errors='replace')[-3000:]}"
                    ) from exc
            await asyncio.sleep(0.1)

    # Configuration.

    async def configure(self, **settings: object) -> None:
        needs_a_restart = await self.execute(NEED_A_RESTART, list(settings))
        for name, value in settings.items():
            change = f"RESET {name}" if value is None else f"SET {name} = {cluster.setting(value)}"
            try:
                await self.execute(f"ALTER SYSTEM {change}")
            except asyncpg.PostgresError as exc:
                raise ServerError(f"{self!r} rejected its configuration: {exc}") from exc
        await (self.restart() if needs_a_restart else reload(self))

    async def set_hba(self, lines: Sequence[str] | None) -> None:
        file = await self.fetchval("SHOW hba_file")
        before = await self.fetchval("SELECT pg_read_file($1)", file)
        await self._write(file, cluster.hba_text(self.admin, lines))
        try:
            await reload(self)
        except ServerError:
            await self._write(file, before)
            await reload(self)
            raise

    async def enable_tls(self) -> str:
        from .tls import write_certificates

        if self._files is None:
            self._files = tempfile.TemporaryDirectory(prefix="aiopqr-")
        files = await in_a_thread(functools.partial(write_certificates, Path(self._files.name)))
        data = await self.fetchval("SHOW data_directory")
        for file in (files.cert, files.key):
            text = await in_a_thread(Path(file).read_text)
            await self._write(f"{data}/{Path(file).name}", text)
        await self.configure(ssl=True, ssl_cert_file=Path(files.cert).name, ssl_key_file=Path(files.key).name)
        self.ca_file = files.ca
        return files.ca

    async def _write(self, file: str, text: str) -> None:
        """Write a file in the container, as the user that runs the server."""
        command = ["sh", "-c", 'umask 077; printf %s "$TEXT" >"$FILE"']
        written = await in_a_thread(
            lambda: self._wrapped.exec_run(command, user="postgres", environment={"TEXT": text, "FILE": file})
        )
        if written.exit_code != 0:
            raise ServerError(f"{file} of {self!r} cannot be written: {written.output.decode(errors='replace')}")

    # The log.

    def _log(self) -> bytes:
        """The server's standard error. Docker shows it with a delay, so log a line and wait until that shows up."""
        line = f"aiopqr reads the log {secrets.token_hex(8)}"
        try:
            run_apart(self.execute(f"DO $$ BEGIN RAISE LOG '{line}'; END $$"))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return self._written()  # the server is down, so nothing more will be logged
        deadline = time.monotonic() + _LOG_TIMEOUT
        while line.encode() not in (log := self._written()):
            if time.monotonic() > deadline:
                raise ServerError(f"the log of {self!r} cannot be read: Docker does not show a line just logged")
            time.sleep(0.01)
        return log

    def _written(self) -> bytes:
        log: bytes = self._wrapped.logs(stdout=False, stderr=True)
        return log

    @property
    def _wrapped(self) -> Any:
        if self._container is None:
            raise ServerError(f"{self!r} is not started")
        return self._container.get_wrapped_container()


def container_of(image: str, ports: dict[int, int | None], environment: dict[str, str]) -> Any:
    """Make a container without starting it. Its ``ports`` are published on 127.0.0.1 (None lets Docker choose one).

    Raises :class:`NotAvailable` if Docker does not answer or does not have the image.
    """
    try:
        from testcontainers.core.container import DockerContainer
    except ImportError:
        raise NotAvailable("a container needs testcontainers: pip install testcontainers") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Docker's client leaks a socket if it cannot connect
        problem = _why_it_cannot_be_had(image)
        gc.collect()
    if problem:
        raise NotAvailable(problem)
    container: Any = DockerContainer(image)
    for inside, outside in ports.items():
        container.ports[str(inside)] = ("127.0.0.1", outside)  # `with_bind_ports` would bind to 0.0.0.0
    for key, value in environment.items():
        container.with_env(key, value)
    return container


def new_network() -> Any:
    """Make a network for one container."""
    from testcontainers.core.network import Network

    return Network().create()


def _why_it_cannot_be_had(image: str) -> str | None:
    import docker  # type: ignore[import-untyped, unused-ignore]

    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as exc:
        return f"Docker does not answer: {exc}"
    with contextlib.closing(client):
        try:
            client.images.get(image)
        except docker.errors.ImageNotFound:
            try:
                client.images.pull(image)
            except docker.errors.DockerException as exc:
                return f"Docker has no image {image} and cannot pull it: {exc}"
    return None
