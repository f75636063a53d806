"""The database as a rotator sees it: asked on the administrator's connection, logged in to on the applications' path.

It stands apart because it is all the SQL of a rotation, and because others run the steps in another order (AWS calls a
rotation in four parts). No password is ever sent: the server gets SCRAM verifiers, and proofs at a login.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import asyncpg

from .._login import verifier
from ..credentials import Credential, CredentialPair, Parity, Secret
from ..errors import RotationError, describe
from ..refusals import Verdict, classify
from .errors import PathDown, RotationRefused
from .gates import Facts, Gate, Login, Objection, Session
from .stores.store import StoredSecret

AdminConnect = Callable[[], Awaitable[Any]]
AccountConnect = Callable[[Credential], Awaitable[Any]]

_APPLICATION_NAME = "aiopqr-rotate"

# The lock must not be lost to a time limit while the store is written, nor kept by a machine that has lost its power.
# Settings that this server's version does not have are left out.
_KEEP_LOCK = """
SELECT set_config(name, value, true)
FROM (VALUES ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'),
             ('statement_timeout', '30s'), ('lock_timeout', '20s'),
             ('tcp_keepalives_idle', '15'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3'))
     AS wanted (name, value)
JOIN pg_settings USING (name)
"""

_SESSIONS = """
SELECT usename, pid, application_name, backend_start FROM pg_stat_activity
WHERE usename = ANY ($1) AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
"""

_TERMINATE = """
SELECT pid, pg_terminate_backend(pid) AS ended FROM pg_stat_activity
WHERE usename = $1 AND backend_start < $2 AND backend_type = 'client backend' AND application_name <> ALL ($3)
"""


def identifier(name: str) -> str:
    """A role's name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


class Database:
    """What a rotation asks of Postgres, and the one thing that it changes there.

    ``admin`` and ``verify`` are DSNs, or async callables that return a new connection: ``admin()`` as a role that may
    alter the accounts, ``verify(credential)`` as an application would connect with that account, through the same
    proxies. An ``admin`` DSN is connected to its server's ``postgres`` database where there is one: advisory locks are
    per database, and rotators must meet. ``timeout`` (seconds) bounds each connect.
    """

    def __init__(self, admin: str | AdminConnect, verify: str | AccountConnect, *, timeout: float = 10.0) -> None:
        self._admin = admin_by_dsn(admin, timeout=timeout) if isinstance(admin, str) else admin
        self._verify = _account_by_dsn(verify, timeout) if isinstance(verify, str) else verify

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """A connection of the admin role. Raises :class:`RotationError` when there is none to be had."""
        con, problem = None, ""
        try:
            con = await self._admin()
        except Exception as exc:
            problem = f"the admin role cannot connect: {describe(exc)}"
        if con is None:
            raise RotationError(problem)
        try:
            yield con
        finally:
            await _close(con)

    @contextlib.asynccontextmanager
    async def exclusively(self, pair: CredentialPair) -> AsyncIterator[Any]:
        """Keep other rotators of this pair out until the block ends; yields the connection that does so.

        Raises :class:`RotationRefused` while there is another one.
        """
        async with self._locking() as con:
            if not await con.fetchval("SELECT pg_try_advisory_xact_lock($1)", _lock_key("rotation", pair)):
                text = "another rotation of these accounts is running right now"
                raise RotationRefused([Objection(Gate.IN_PROGRESS, text)])
            yield con

    @contextlib.asynccontextmanager
    async def altering(self, pair: CredentialPair) -> AsyncIterator[Any]:
        """A transaction that no other alteration of this pair has beside it; waits for one that is just ending.

        What is altered in it takes effect when the block ends, and only if the lock was held all the time: a rotator
        that slept through the end of its session alters nothing when it wakes up.
        """
        async with self._locking() as con:
            await con.fetchval("SELECT pg_advisory_xact_lock($1)", _lock_key("alteration", pair))
            yield con

    @contextlib.asynccontextmanager
    async def _locking(self) -> AsyncIterator[Any]:
        async with self.connected() as con, con.transaction():
            await con.execute(_KEEP_LOCK)
            yield con

    async def gather(self, con: Any, secret: StoredSecret) -> Facts:
        """All facts that a rotation is decided from. Costs a login for each account, and no change.

        Raises :class:`PathDown` when a login failed without the account being refused.
        """
        pair = secret.pair
        if pair.odd is None or pair.even is None:
            raise RotationError(f"the pair is degraded: it has no {pair.missing} account, and a rotation needs both")
        parities = {pair.odd.username: Parity.ODD, pair.even.username: Parity.EVEN}
        # Before the logins, whose own sessions end a little later than their connections do.
        rows = await con.fetch(_SESSIONS, list(parities))
        sessions = tuple(
            Session(parities[row["usename"]], row["pid"], row["application_name"] or "", row["backend_start"])
            for row in rows
        )
        logins = {Parity.ODD: await self.login(pair.odd), Parity.EVEN: await self.login(pair.even)}
        staged, pending = pair.pending_parity, None
        if staged is not None and pair.pending is not None and not logins[staged].accepted:
            pending = await self.login(pair.pending)
        # A staged password that works is to be stored as the account's own, however the other account fares.
        if pending is None or not pending.accepted:
            _raise_if_untried(pair, logins, pending)
        return Facts(await self.now(con), secret, logins, pending, sessions)

    async def login(self, credential: Credential) -> Login:
        """Log in with a new connection on the applications' path, and ask the server who we are."""
        try:
            con = await self._verify(credential)
        except Exception as exc:  # told by its text, since its frames hold the password
            return _failed(exc)
        try:
            async with con.transaction():  # which keeps a pooling proxy on one server connection
                user = await con.fetchval("SELECT session_user")
        except Exception as exc:
            return _failed(exc)
        finally:
            await _close(con)
        if user != credential.username:
            return Login(False, False, f"the server says that {credential.username!r} is {user!r}")
        return Login(True)

    async def now(self, con: Any) -> datetime:
        """The server's clock, by which sessions are dated too."""
        now: datetime = await con.fetchval("SELECT clock_timestamp()")
        return now

    async def alter(self, con: Any, credential: Credential) -> None:
        """Give the account its password, as a SCRAM-SHA-256 verifier.

        Raises :class:`RotationError` when the server refuses. The driver's error holds the statement and is not kept.
        """
        try:
            proof = verifier(credential.password.reveal())
            await con.execute(f"ALTER ROLE {identifier(credential.username)} PASSWORD '{proof}'")
            return
        except Exception as exc:
            problem = f"ALTER ROLE {identifier(credential.username)} failed: {describe(exc)}".replace("\n", " ")
        raise RotationError(problem)

    async def terminate(
        self, con: Any, username: str, before: datetime, exempt: Sequence[str] = ()
    ) -> tuple[int, str | None]:
        """End the account's sessions that began before a moment: how many were, and what went wrong."""
        try:
            rows = await con.fetch(_TERMINATE, username, before, list(exempt))
        except asyncpg.PostgresError as exc:
            return 0, describe(exc)
        return sum(row["ended"] for row in rows), None


def _failed(exc: BaseException) -> Login:
    # A path that is down says nothing of the password, and an account at its connection limit has had it accepted.
    return Login(False, classify(exc) in (Verdict.CREDENTIAL, Verdict.ACCOUNT), describe(exc))


def _raise_if_untried(pair: CredentialPair, logins: dict[Parity, Login], pending: Login | None) -> None:
    tried = [(account.username, logins[parity]) for parity in Parity if (account := pair[parity])]
    if pending is not None and pair.pending is not None:
        tried.append((pair.pending.username, pending))
    untried = [(name, login) for name, login in tried if not (login.accepted or login.refused)]
    if not untried:
        return
    name, login = untried[0]
    if len(untried) == len(tried):
        raise PathDown(f"could not be tried: the applications' path is down: {login.text}. Nothing was changed.")
    raise PathDown(f"{name!r} could not be tried on the applications' path: {login.text}. Nothing was changed.")


async def _close(con: Any) -> None:
    try:
        await con.close(timeout=5.0)
    except Exception:  # the server is gone, and nothing was to be had from it any more
        con.terminate()


def _lock_key(purpose: str, pair: CredentialPair) -> int:
    """The same number for the same two accounts, in a range of our own."""
    names = "\0".join(sorted(credential.username for credential in (pair.odd, pair.even) if credential))
    return int.from_bytes(hashlib.sha256(f"aiopqr-{purpose}\0{names}".encode()).digest()[:8], "big", signed=True)


def admin_by_dsn(dsn: str, *, password: Secret | None = None, timeout: float = 10.0) -> AdminConnect:
    """How to connect as the role that ``dsn`` names, to the ``postgres`` database where there is one.

    Without ``password`` it comes from where asyncpg looks: the DSN, PGPASSWORD, or the password file.
    """
    options: dict[str, Any] = {"timeout": timeout, "statement_cache_size": 0}
    if password is not None:
        options["password"] = password.reveal
    options |= {"server_settings": {"application_name": _APPLICATION_NAME}}

    async def connect() -> Any:
        # A pg_hba.conf or a password file may well know only the database that the DSN names.
        with contextlib.suppress(
            asyncpg.InvalidCatalogNameError,
            asyncpg.InsufficientPrivilegeError,
            asyncpg.InvalidAuthorizationSpecificationError,
        ):
            return await asyncpg.connect(dsn, database="postgres", **options)
        return await asyncpg.connect(dsn, **options)

    return connect


def _account_by_dsn(dsn: str, timeout: float) -> AccountConnect:
    async def connect(credential: Credential) -> Any:
        return await asyncpg.connect(
            dsn,
            user=credential.username,
            password=credential.password.reveal,
            timeout=timeout,
            statement_cache_size=0,
            server_settings={"application_name": _APPLICATION_NAME},
        )

    return connect
