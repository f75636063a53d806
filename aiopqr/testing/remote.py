"""A server that is already running, named by a DSN."""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg

from .._login import connect_once
from ..credentials import Secret
from .errors import NotAvailable
from .server import PostgresServer, run_apart


class ExistingPostgres(PostgresServer):
    """A server that is already running, named by the DSN of a superuser or a role that may create roles and databases.

    The DSN's parameters, such as ``sslmode``, are kept. You cannot stop or configure the server, or read its log.
    """

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
            raise NotAvailable("an existing server needs a DSN such as postgresql://user:password@host:5432/postgres")
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
        try:
            version = run_apart(self.fetchval("SHOW server_version"))
        except (OSError, asyncpg.InvalidAuthorizationSpecificationError, TimeoutError) as exc:
            raise NotAvailable(f"cannot log in as {self.admin} on {self.host}:{self.port}: {exc}") from exc
        self._version = str(version).split()[0]
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
        # If the DSN has no password, asyncpg looks in PGPASSWORD and ~/.pgpass.
        options = {"password": self._password or None, "timeout": 30.0, "statement_cache_size": 100, **options}
        connection: asyncpg.Connection[asyncpg.Record] = await connect_once(dsn, user=self.admin, **options)
        return connection
