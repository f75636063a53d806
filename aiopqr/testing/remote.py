"""Servers that are not our own process: one that runs already, and one in a container.

Apart from the embedded one because of what they cannot do: neither has a ``pg_hba.conf`` in our reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import secrets
import socket
import warnings
from typing import Any, Self
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg

from ..credentials import Secret
from .errors import ServerError, ServerUnavailable
from .server import PostgresServer, beside_the_loop, run_apart


class ExistingPostgres(PostgresServer):
    """A server that is there already, by the DSN of a superuser (or a role that may create roles and databases).

    Its parameters, such as ``sslmode``, are kept. It cannot be stopped or configured, and its log cannot be read.
    """

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
            raise ServerUnavailable(
                "an existing server needs a DSN such as postgresql://user:password@host:5432/postgres"
            )
        self.host, self.port = parts.hostname, parts.port or 5432
        self.admin = unquote(parts.username or "postgres")
        self._password = Secret(unquote(parts.password or ""))
        self._parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        self._version = "of unknown version"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._version} on {self.host}:{self.port}>"

    @property
    def version(self) -> str:
        return self._version

    @property
    def admin_password(self) -> Secret:
        return self._password

    def start(self) -> Self:
        self._version = str(run_apart(self.fetchval("SHOW server_version"))).split()[0]
        return self

    def stop(self) -> None:
        pass

    def dsn_of(self, database: str, *, socket: bool = False, **parameters: str) -> str:
        own = super().dsn_of(database, socket=socket, **parameters)
        if not self._parts.query:
            return own
        return f"{own}{'&' if '?' in own else '?'}{self._parts.query}"

    async def admin_connect(self, database: str = "postgres", **options: Any) -> asyncpg.Connection[asyncpg.Record]:
        dsn = urlunsplit(self._parts._replace(path=f"/{database}"))
        # Without a password in the DSN, asyncpg looks into PGPASSWORD and ~/.pgpass.
        password = {"password": self._password.reveal} if self._password else {}
        try:
            connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
                dsn, user=self.admin, **{"timeout": 30.0, **password, **options}
            )
        except (OSError, asyncpg.InvalidAuthorizationSpecificationError, TimeoutError) as exc:
            raise ServerUnavailable(f"no login as {self.admin} on {self.host}:{self.port}: {exc}") from exc
        return connection


class ContainerPostgres(PostgresServer):
    """A Postgres in a container, by ``testcontainers``, where Docker answers. It can be halted, and its log read."""

    admin = "postgres"

    def __init__(self, image: str = "postgres:17-alpine") -> None:
        self.image = image
        self.host, self.port = "127.0.0.1", 0
        self._container: Any = None
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

    def start(self) -> Self:
        try:
            from testcontainers.core.container import DockerContainer
        except ImportError:
            raise ServerUnavailable("a container needs testcontainers: pip install testcontainers") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # Docker's client forgets a socket that does not connect
            problem = _why_docker_does_not_answer()
            gc.collect()
        if problem:
            raise ServerUnavailable(f"Docker does not answer: {problem}")
        with socket.socket() as probe:  # chosen here, so that it stays the same over a restart
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        container: Any = DockerContainer(self.image)
        container.ports["5432"] = (self.host, self.port)  # Docker takes a pair; `with_bind_ports` would bind to 0.0.0.0
        for key, value in (
            ("POSTGRES_PASSWORD", self._password.reveal()),
            ("POSTGRES_HOST_AUTH_METHOD", "scram-sha-256"),
            ("POSTGRES_INITDB_ARGS", "--auth=scram-sha-256 --no-sync"),
        ):
            container.with_env(key, value)
        self._container = container
        try:
            container.start()
            self._version = str(run_apart(self._answer())).split()[0]
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        if self._container is not None:
            self._container.stop()
            self._container = None

    async def halt(self, mode: str = "fast") -> None:
        number = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}[mode]
        wrapped = self._container.get_wrapped_container()
        await beside_the_loop(functools.partial(wrapped.kill, number))
        await beside_the_loop(wrapped.wait)

    async def resume(self) -> None:
        await beside_the_loop(self._container.get_wrapped_container().start)
        await self._answer()

    async def _answer(self) -> Any:
        """The server's version, as soon as it takes logins. The image starts it twice, the first time without TCP."""
        for _ in range(600):
            try:
                return await self.fetchval("SHOW server_version")
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.InterfaceError):
                await asyncio.sleep(0.1)
        raise ServerError(f"{self!r} took no login within 60 s. The end of its log:\n{self.log_text()[-3000:]}")

    def _log(self) -> bytes:
        streams: tuple[bytes, bytes] = self._container.get_logs()
        return streams[1]


def _why_docker_does_not_answer() -> str | None:
    import docker  # type: ignore[import-untyped, unused-ignore]

    try:
        with contextlib.closing(docker.from_env()) as client:
            client.ping()
    except docker.errors.DockerException as exc:
        return str(exc)
    return None
