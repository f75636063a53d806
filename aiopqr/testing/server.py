"""What every test server can do with SQL: accounts, passwords, sessions, logins.

The kinds of server (a process of our own, a container, a server that is already running) differ in how they are reached
and in what else they can do. A method that a kind does not support raises :class:`NotSupported`, which fixtures can
turn into a skip.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import asyncpg

from .._login import connect_once, no_frames, verifier
from ..credentials import Credential, CredentialPair, Secret
from ..rotation.sql import identifier, literal
from .errors import NotSupported, ServerError

_T = TypeVar("_T")
_RELOAD_TIMEOUT = 10.0
_LOGIN_FAILED = "password authentication failed"


class PostgresServer(ABC):
    """A running Postgres with a superuser, for tests. ``admin`` is the superuser's name."""

    admin: str
    host: str
    port: int
    socket_dir: str | None = None
    ca_file: str | None = None

    @property
    @abstractmethod
    def version(self) -> str:
        """The server's version, such as ``16.14``."""

    @property
    @abstractmethod
    def admin_password(self) -> Secret:
        """The superuser's password."""

    @property
    def dsn(self) -> str:
        """The DSN of the ``postgres`` database, without a user or a password."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str, *, socket: bool = False, **parameters: str) -> str:
        """Return a DSN of ``database`` without user and password. ``parameters``: for example ``sslmode="require"``."""
        if socket:
            if self.socket_dir is None:
                raise NotSupported(f"{self!r} has no known Unix socket")
            parameters = {"host": self.socket_dir, "port": str(self.port), **parameters}
        place = "" if socket else f"{_bracketed(self.host)}:{self.port}"
        query = f"?{urlencode(parameters)}" if parameters else ""
        return f"postgresql://{place}/{quote(database, safe='')}{query}"

    def admin_dsn(self, database: str = "postgres") -> str:
        """Return the superuser's DSN **with its password**, for programs that accept nothing else. Never log it."""
        user, password = (quote(text, safe="") for text in (self.admin, self.admin_password.reveal()))
        return self.dsn_of(database).replace("//", f"//{user}:{password}@", 1)

    async def admin_connect(self, database: str = "postgres", **options: Any) -> asyncpg.Connection[asyncpg.Record]:
        """Open a connection as the superuser."""
        options = {
            "host": self.host,
            "port": self.port,
            "ssl": False,
            "timeout": 30.0,
            "statement_cache_size": 100,
            **options,
        }
        connection: asyncpg.Connection[asyncpg.Record] = await connect_once(
            None, user=self.admin, password=self.admin_password, database=database, **options
        )
        return connection

    async def execute(self, sql: str, *args: object, database: str = "postgres") -> list[asyncpg.Record]:
        """Run ``sql`` as the superuser, on a new connection. Without ``args``, it may be several statements."""
        connection = await self.admin_connect(database)
        try:
            with no_frames():  # a statement may hold a verifier
                if args:
                    return await connection.fetch(sql, *args)
                statement = None if ";" in sql.rstrip().rstrip(";") else await connection.prepare(sql)
                if statement is not None and statement.get_attributes():
                    return await statement.fetch()
                await connection.execute(sql)
                return []
        finally:
            await connection.close()

    async def fetchval(self, sql: str, *args: object, database: str = "postgres") -> Any:
        """Run ``sql`` as the superuser, and return the first column of the first row."""
        connection = await self.admin_connect(database)
        try:
            return await connection.fetchval(sql, *args)
        finally:
            await connection.close()

    async def create_database(self, database: str, *, owner: str | None = None) -> None:
        """Create an empty database."""
        belongs = f" OWNER {identifier(owner)}" if owner else ""
        await self.execute(f"CREATE DATABASE {identifier(database)}{belongs} TEMPLATE template0")

    async def drop_database(self, database: str) -> None:
        """Drop ``database``, ending the sessions in it."""
        await self.execute(f"DROP DATABASE IF EXISTS {identifier(database)} WITH (FORCE)")

    async def create_accounts(
        self,
        odd: str = "app_odd",
        even: str = "app_even",
        *,
        owner: str = "app",
        database: str | None = None,
        active: str = "odd",
    ) -> CredentialPair:
        """Create two LOGIN roles with random passwords, members of a NOLOGIN role ``owner``. Returns them as a pair.

        Each acts as ``owner`` (``SET role``), so both own what either of them creates. If ``database`` is given, it is
        created for them.
        """
        pair = CredentialPair(
            odd=Credential(odd, secrets.token_urlsafe(18)),
            even=Credential(even, secrets.token_urlsafe(18)),
            active=active,  # type: ignore[arg-type]  # the pair makes it a Parity
        )
        statements = [f"CREATE ROLE {identifier(owner)} NOLOGIN"]
        for account in pair.credentials():
            name, proof = identifier(account.username), _verifier(account.password)
            statements.append(f"CREATE ROLE {name} LOGIN IN ROLE {identifier(owner)} PASSWORD {proof}")
            statements.append(f"ALTER ROLE {name} SET role = {identifier(owner)}")
        await self.execute("; ".join(statements))
        if database is not None:
            await self.create_database(database, owner=owner)
        return pair

    async def drop_accounts(self, *usernames: str) -> None:
        """Drop roles, ending their sessions first. They must not own anything."""
        await self.terminate(*usernames)
        await self.execute("; ".join(f"DROP ROLE IF EXISTS {identifier(name)}" for name in usernames))

    async def set_password(self, username: str, password: str | Secret) -> None:
        """Change a password. The server receives only a verifier, so its log cannot show the password."""
        await self.set_passwords(Credential(username, password))

    async def set_passwords(self, *accounts: Credential) -> None:
        """Change several passwords in one transaction, as :meth:`set_password` does."""
        await self.execute(
            ";".join(f"ALTER ROLE {identifier(one.username)} PASSWORD {_verifier(one.password)}" for one in accounts)
        )

    async def sessions(self, *usernames: str, database: str | None = None) -> list[asyncpg.Record]:
        """Return the ``pg_stat_activity`` rows of client backends except our own, by default of all users."""
        return await self.execute(
            "SELECT * FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            " AND ($1::text[] = '{}' OR usename = ANY($1)) AND datname = coalesce($2, datname)"
            " ORDER BY backend_start",
            list(usernames),
            database,
        )

    async def terminate(self, *usernames: str, database: str | None = None) -> int:
        """End the sessions of ``usernames`` and wait until they are gone. Returns how many there were."""
        pids = [row["pid"] for row in await self.sessions(*usernames, database=database)]
        await self.execute("SELECT pg_terminate_backend(pid, 10000) FROM unnest($1::int[]) AS pid", pids)
        return len(pids)

    # Starting and stopping.

    @abstractmethod
    def start(self) -> Self:
        """Start the server and wait until it accepts logins. This blocks; ``async with`` runs it in a thread.

        Raises :class:`NotAvailable` if there is no such server, and :class:`ServerError` if it did not start.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop using the server. If it was started here, it is stopped and removed. A second call does nothing."""

    async def aclose(self) -> None:
        """Run :meth:`stop` in a thread. If cancelled, it finishes first."""
        await in_a_thread(self.stop)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            return await in_a_thread(self.start)
        except asyncio.CancelledError:
            await in_a_thread(self.stop)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # What only some kinds of server can do.

    async def halt(self, mode: str = "fast") -> None:
        """Stop the server and keep its data. ``fast`` ends all sessions; ``immediate`` is like a crash."""
        raise NotSupported(f"{self!r} cannot be stopped")

    async def resume(self) -> None:
        """Start the server again after :meth:`halt`, on the same port."""
        raise NotSupported(f"{self!r} cannot be started")

    async def restart(self, mode: str = "fast") -> None:
        """Call :meth:`halt` and then :meth:`resume`."""
        await self.halt(mode)
        await self.resume()

    async def configure(self, **settings: object) -> None:
        """Set server settings, and restart the server if one of them needs it. None resets a setting."""
        raise NotSupported(f"{self!r} cannot be configured")

    async def set_hba(self, lines: Sequence[str] | None) -> None:
        """Replace ``pg_hba.conf`` with ``lines`` (None: SCRAM for everyone). The superuser can always log in."""
        raise NotSupported(f"the pg_hba.conf of {self!r} cannot be changed")

    async def enable_tls(self) -> str:
        """Turn on TLS, with a certificate for ``localhost`` and 127.0.0.1. Returns the path of the CA's certificate."""
        raise NotSupported(f"{self!r} cannot be given a certificate")

    def mark(self) -> int:
        """Return the current end of the server's log, to pass as ``since=`` later."""
        return len(self._log())

    def log_text(self, since: int = 0) -> str:
        """Return the server's log after ``since``."""
        return self._log()[since:].decode(errors="replace")

    def failed_logins(self, since: int = 0, *, username: str | None = None) -> int:
        """Return how many logins were refused because of a wrong password, by the server's log after ``since``."""
        whose = f'{_LOGIN_FAILED} for user "{username}"' if username else _LOGIN_FAILED
        return len(re.findall(rf"FATAL: +{re.escape(whose)}", self.log_text(since)))

    def _log(self) -> bytes:
        raise NotSupported(f"the log of {self!r} cannot be read")


async def reload(server: PostgresServer) -> None:
    """Make ``server`` read its configuration files. Returns when new sessions use them."""
    mark, before = server.mark(), await server.fetchval("SELECT pg_conf_load_time()")
    await server.fetchval("SELECT pg_reload_conf()")
    deadline = time.monotonic() + _RELOAD_TIMEOUT
    while await server.fetchval("SELECT pg_conf_load_time()") == before:
        if time.monotonic() > deadline:
            raise ServerError(f"{server!r} did not read its configuration:\n{server.log_text(mark)}")
        await asyncio.sleep(0.01)
    if re.search(r"contains errors|was not reloaded", log := server.log_text(mark)):
        raise ServerError(f"{server!r} rejected its configuration:\n{log}")


def run_apart(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end in a thread with its own event loop. The caller need not be async."""
    with ThreadPoolExecutor(1, thread_name_prefix="aiopqr-testing") as thread:
        return thread.submit(asyncio.run, work).result()


async def in_a_thread(work: Callable[[], _T]) -> _T:
    """Run blocking work in a thread. If cancelled, wait for it to finish, since a thread cannot be cancelled."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _verifier(secret: Secret) -> str:
    return literal(verifier(secret.reveal()))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
