"""The database as a rotator sees it: queries on the admin's connection, and logins over the applications' path.

All the SQL of a rotation is here. No password is ever sent: the server gets SCRAM verifiers, and SCRAM proofs at login.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from .._login import DRIVER_ERRORS, answered, no_frames, place_of, verifier
from ..credentials import Credential, CredentialPair, Parity
from ..errors import RotationError, describe
from ..refusals import Verdict, classify
from .connects import AccountConnect, AdminConnect, account_by_dsn, admin_by_dsn, close
from .errors import PathDown, RotationRefused
from .gates import Facts, Gate, LoginResult, Objection, Session
from .sql import identifier, literal
from .stores.store import StoredSecret
from .words import counted

# A proxy may take a moment to notice a new password, but servers and proxies may lock an account after ten failures.
_REFUSED_LOGINS = 5
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0

# The lock must not be lost to a timeout while the store is being written, and must not be held by a machine that has
# lost power. Settings that this version of the server does not have are left out.
_KEEP_LOCK = """
SELECT set_config(name, value, true)
FROM (VALUES ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'),
             ('statement_timeout', '30s'), ('lock_timeout', '20s'),
             ('tcp_keepalives_idle', '15'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3'))
     AS wanted (name, value)
JOIN pg_settings USING (name)
"""

_ROLES = """
SELECT rolname, CASE WHEN rolvaliduntil < 'infinity' THEN rolvaliduntil END AS valid_until
FROM pg_roles WHERE rolname = ANY ($1)
"""

_SESSIONS = """
SELECT usename, pid, application_name, backend_start, host(client_addr) AS address FROM pg_stat_activity
WHERE usename = ANY ($1) AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
"""

# For a session that the admin role may not see, everything but the user and the pid is NULL.
_TERMINATE = """
SELECT backend_start IS NULL AS unseen, CASE WHEN backend_start < $2 THEN pg_terminate_backend(pid) END AS ended
FROM pg_stat_activity
WHERE usename = $1 AND coalesce(backend_start < $2, true)
  AND coalesce(backend_type, 'client backend') = 'client backend' AND coalesce(application_name, '') <> ALL ($3)
"""


class Database:
    """Everything that a rotation does with Postgres.

    ``admin`` and ``verify`` are DSNs, or async callables that return a new connection. ``admin()`` connects as a role
    that may alter the accounts. ``verify(credential)`` connects with that account as an application would, through the
    same proxies. If ``admin`` is a DSN, the server's ``postgres`` database is used if there is one, since advisory
    locks are per database and all rotators must use the same one. ``timeout`` (seconds) limits each connect.
    """

    def __init__(self, admin: str | AdminConnect, verify: str | AccountConnect, *, timeout: float = 10.0) -> None:
        self._admin = admin_by_dsn(admin, timeout=timeout) if isinstance(admin, str) else admin
        self._verify = account_by_dsn(verify, timeout) if isinstance(verify, str) else verify
        self._path = place_of(verify) if isinstance(verify, str) else ""

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """A connection as the admin role. Raises :class:`RotationError` if it cannot connect."""
        con, problem = None, ""
        try:
            with no_frames():
                con = await self._admin()
        except RotationError as exc:
            problem = str(exc)
        except Exception as exc:
            problem = f"the admin role cannot connect: {describe(exc)}"
        if con is None:
            raise RotationError(problem)
        try:
            yield con
        finally:
            await close(con)

    @contextlib.asynccontextmanager
    async def exclusively(self, pair: CredentialPair) -> AsyncIterator[Any]:
        """Keep other rotators of this pair out until the block ends. Yields the connection that holds the lock.

        Raises :class:`RotationRefused` if another rotator is running. Losing the connection meanwhile is not an
        error: even then, the store's compare-and-set and :meth:`altering` prevent two rotators from doing harm.
        """
        async with self._transaction() as con:
            if not await con.fetchval("SELECT pg_try_advisory_xact_lock($1)", _lock_key("rotation", pair)):
                text = "another rotation of these accounts is running right now"
                raise RotationRefused([Objection(Gate.IN_PROGRESS, text)])
            yield con

    async def is_held(self, guard: Any) -> bool:
        """Whether the lock of :meth:`exclusively` has been held throughout: its transaction has not ended."""
        try:
            await guard.fetchval("SELECT 1", timeout=10.0)
        except DRIVER_ERRORS:
            return False
        return True

    @contextlib.asynccontextmanager
    async def still_exclusively(self, guard: Any, pair: CredentialPair) -> AsyncIterator[None]:
        """Like :meth:`exclusively`, with the lock that ``guard`` holds or, if that is lost, with a new one."""
        async with contextlib.nullcontext() if await self.is_held(guard) else self.exclusively(pair):
            yield

    @contextlib.asynccontextmanager
    async def altering(self, pair: CredentialPair) -> AsyncIterator[Any]:
        """A transaction in which no other rotator can alter this pair. Waits if one is doing so right now.

        Changes take effect with :meth:`commit`, and only if the lock was held throughout. So a rotator that was
        suspended for so long that its session has ended alters nothing when it resumes.
        """
        async with self._transaction() as con:
            await con.fetchval("SELECT pg_advisory_xact_lock($1)", _lock_key("alteration", pair))
            yield con

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        """A transaction that is rolled back unless it was committed. An error of the rollback is ignored."""
        async with self.connected() as con:
            await con.execute("BEGIN")
            try:
                await con.execute(_KEEP_LOCK)
                yield con
            finally:
                with contextlib.suppress(*DRIVER_ERRORS):
                    if con.is_in_transaction():
                        await con.execute("ROLLBACK")

    async def gather(self, con: Any, secret: StoredSecret) -> Facts:
        """Gather all facts that a decision needs. This logs in with each account, and changes nothing.

        Raises :class:`PathDown` if a login failed for any reason but a refusal of the account.
        """
        pair = secret.pair
        if pair.odd is None or pair.even is None:
            raise RotationError(f"the pair is degraded: it has no {pair.missing} account, and a rotation needs both")
        parities = {pair.odd.username: Parity.ODD, pair.even.username: Parity.EVEN}
        # Look at the sessions before the logins, whose own sessions may outlast their connections for a moment.
        sessions = await self.sessions(con, parities)
        ends = await self.ends(con, list(parities))
        logins = {Parity.ODD: await self.login(pair.odd), Parity.EVEN: await self.login(pair.even)}
        staged, pending = pair.pending_parity, None
        if staged is not None and pair.pending is not None and not logins[staged].accepted:
            pending = await self.login(pair.pending)
        # A staged password that works must become the account's current one, whatever state the other account is in.
        if pending is None or not pending.accepted:
            self._raise_if_untried(pair, logins, pending)
        return Facts(
            await self.time(con),
            secret,
            logins,
            pending,
            sessions,
            {parity: end for name, parity in parities.items() if (end := ends.get(name))},
            frozenset(parity for name, parity in parities.items() if name not in ends),
        )

    async def ends(self, con: Any, names: Sequence[str]) -> dict[str, datetime | None]:
        """VALID UNTIL of the roles that exist; None for roles without one."""
        return {row["rolname"]: row["valid_until"] for row in await con.fetch(_ROLES, list(names))}

    async def sessions(self, con: Any, parities: dict[str, Parity]) -> tuple[Session, ...]:
        """The sessions of these accounts, as far as the admin role can see them."""
        return tuple(
            Session(
                parities[row["usename"]],
                row["pid"],
                row["application_name"] or "",
                row["backend_start"],
                row["address"],
            )
            for row in await con.fetch(_SESSIONS, list(parities))
        )

    async def login(self, credential: Credential) -> LoginResult:
        """Log in over the applications' path, and ask the server for the session's user."""
        try:
            with no_frames():
                con = await self._verify(credential)
        except Exception as exc:
            return self._failed(exc)
        try:
            async with con.transaction():  # so that a pooling proxy stays on one server connection
                user = await con.fetchval("SELECT session_user")
        except Exception as exc:
            return self._failed(exc)
        finally:
            await close(con)
        if user != credential.username:
            return LoginResult(
                False, False, f"after logging in as {credential.username!r}, the session's user is {user!r}"
            )
        return LoginResult(True)

    async def login_patiently(self, credential: Credential, timeout: float) -> LoginResult:
        """Repeat :meth:`login` until it succeeds, for up to ``timeout`` seconds. Stops early after some refusals."""
        clock = asyncio.get_running_loop()
        deadline, pause, refusals = clock.time() + timeout, _FIRST_PAUSE, 0
        while True:
            login = await self.login(credential)
            refusals += login.refused
            if login.accepted or refusals >= _REFUSED_LOGINS or clock.time() + pause > deadline:
                return login
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def time(self, con: Any) -> datetime:
        """The time by the server's clock, which also dates the sessions. Uses a new connection if ``con`` is lost."""
        with contextlib.suppress(*DRIVER_ERRORS):
            return await _time(con)
        async with self.connected() as fresh:
            return await _time(fresh)

    async def alter(self, con: Any, credential: Credential, valid_until: datetime | None = None) -> None:
        """Give the account its password, as a SCRAM-SHA-256 verifier, and a new VALID UNTIL if one is given.

        It takes effect with :meth:`commit`. Raises :class:`RotationError` if the server refuses it, without the
        driver's error, since that contains the statement.
        """
        role = f"ALTER ROLE {identifier(credential.username)}"
        until = f" VALID UNTIL {literal(valid_until.isoformat())}" if valid_until else ""
        try:
            with no_frames():
                await con.execute(f"{role} PASSWORD '{verifier(credential.password.reveal())}'{until}")
            return
        except Exception as exc:
            problem = f"{role} failed: {describe(exc)}".replace("\n", " ")
        raise RotationError(problem)

    async def commit(self, con: Any) -> None:
        """Make the changes on ``con`` take effect."""
        await con.execute("COMMIT")

    async def commit_and_go_on(self, con: Any, pair: CredentialPair) -> None:
        """Make the changes on ``con`` take effect, without giving up the lock of :meth:`altering` for a moment."""
        key = _lock_key("alteration", pair)
        with no_frames():
            await con.execute(f"SELECT pg_advisory_lock({key})")  # the session has it now, not only the transaction
            # One message, so that a pooler stays on one server connection.
            await con.execute(f"COMMIT; BEGIN; SELECT pg_advisory_xact_lock({key}); SELECT pg_advisory_unlock({key})")
            await con.execute(_KEEP_LOCK)

    async def terminate(
        self, con: Any, username: str, before: datetime, exempt: Sequence[str] = ()
    ) -> tuple[int, str | None]:
        """End the account's sessions that began before the given time. Returns how many, and an error text or None."""
        try:
            rows = await con.fetch(_TERMINATE, username, before, list(exempt))
        except DRIVER_ERRORS as exc:
            return 0, describe(exc)
        unseen = sum(row["unseen"] for row in rows)
        problem = f"the admin role cannot see when {counted(unseen, 'session')} began: grant it pg_read_all_stats"
        return sum(bool(row["ended"]) for row in rows), problem if unseen else None

    def _failed(self, exc: BaseException) -> LoginResult:
        # If the path is down, that says nothing about the password. If a connection limit is reached, the server has
        # accepted the password.
        text = f"{describe(exc)} (at {self._path})" if self._path else describe(exc)
        verdict = classify(exc)
        unreachable = verdict is Verdict.OUTAGE and not answered(exc)
        return LoginResult(False, verdict in (Verdict.CREDENTIAL, Verdict.ACCOUNT), text, unreachable)

    def _raise_if_untried(
        self, pair: CredentialPair, logins: dict[Parity, LoginResult], pending: LoginResult | None
    ) -> None:
        tried = [(account.username, logins[parity]) for parity in Parity if (account := pair[parity])]
        if pending is not None and pair.pending is not None:
            tried.append((pair.pending.username, pending))
        untried = [(name, login) for name, login in tried if not (login.accepted or login.refused)]
        if not untried:
            return
        name, login = untried[0]
        if all(login.unreachable for _, login in tried):
            raise PathDown(f"the applications' path is down: nothing answered: {login.text}. Nothing was changed.")
        raise PathDown(f"{name!r} could not be tried over the applications' path: {login.text}. Nothing was changed.")


async def _time(con: Any) -> datetime:
    now: datetime = await con.fetchval("SELECT clock_timestamp()")
    return now


def _lock_key(purpose: str, pair: CredentialPair) -> int:
    """The key of an advisory lock: the same number for the same two accounts, and unlikely to collide."""
    names = "\0".join(sorted(credential.username for credential in (pair.odd, pair.even) if credential))
    return int.from_bytes(hashlib.sha256(f"aiopqr-{purpose}\0{names}".encode()).digest()[:8], "big", signed=True)
