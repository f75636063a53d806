"""The database as a rotator sees it: it asks on the admin's connection, and logs in on the applications' path.

All the SQL of a rotation is here. No password is ever sent: the server gets SCRAM verifiers, and proofs at a login.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import asyncpg

from .._login import DRIVER_ERRORS, answered, no_frames, place_of, verifier
from ..credentials import Credential, CredentialPair, Parity
from ..errors import RotationError, describe
from ..refusals import Verdict, classify
from .connects import AccountConnect, AdminConnect, account_by_dsn, admin_by_dsn, close
from .errors import PathDown, RotationRefused
from .gates import Facts, Gate, Login, Objection, Session
from .sql import identifier, literal
from .stores.store import StoredSecret

# A proxy may take a moment to hear of a new password; servers and proxies lock out after ten failures or so.
_REFUSED_LOGINS = 5
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0

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

_ROLES = """
SELECT rolname, CASE WHEN rolvaliduntil < 'infinity' THEN rolvaliduntil END AS valid_until
FROM pg_roles WHERE rolname = ANY ($1)
"""

_SESSIONS = """
SELECT usename, pid, application_name, backend_start, host(client_addr) AS address FROM pg_stat_activity
WHERE usename = ANY ($1) AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
"""

_TERMINATE = """
SELECT pid, pg_terminate_backend(pid) AS ended FROM pg_stat_activity
WHERE usename = $1 AND backend_start < $2 AND backend_type = 'client backend' AND application_name <> ALL ($3)
"""


class Database:
    """What a rotation asks of Postgres, and the one thing that it changes there.

    ``admin`` and ``verify`` are DSNs, or async callables that return a new connection. ``admin()`` connects as a role
    that may alter the accounts. ``verify(credential)`` connects as an application would with that account, through the
    same proxies. With an ``admin`` DSN, the server's ``postgres`` database is used if there is one: advisory locks
    belong to a database, and all rotators must use the same one. ``timeout`` (seconds) bounds each connect.
    """

    def __init__(self, admin: str | AdminConnect, verify: str | AccountConnect, *, timeout: float = 10.0) -> None:
        self._admin = admin_by_dsn(admin, timeout=timeout) if isinstance(admin, str) else admin
        self._verify = account_by_dsn(verify, timeout) if isinstance(verify, str) else verify
        self._path = place_of(verify) if isinstance(verify, str) else ""

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """A connection of the admin role. Raises :class:`RotationError` if it cannot connect."""
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
        """Keep other rotators of this pair out until the block ends; yields the connection that does so.

        Raises :class:`RotationRefused` if there is another one. If the connection is lost meanwhile, nothing is raised:
        the store's compare-and-set and :meth:`altering` keep two rotators from doing harm.
        """
        async with self._transaction() as con:
            if not await con.fetchval("SELECT pg_try_advisory_xact_lock($1)", _lock_key("rotation", pair)):
                text = "another rotation of these accounts is running right now"
                raise RotationRefused([Objection(Gate.IN_PROGRESS, text)])
            yield con

    @contextlib.asynccontextmanager
    async def altering(self, pair: CredentialPair) -> AsyncIterator[Any]:
        """A transaction in which no other rotator alters this pair; waits for an alteration that is just ending.

        What is altered in it takes effect with :meth:`commit`, and only if the lock was held all the time. So a rotator
        that was suspended until after the end of its session alters nothing when it resumes.
        """
        async with self._transaction() as con:
            await con.fetchval("SELECT pg_advisory_xact_lock($1)", _lock_key("alteration", pair))
            yield con

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        """A transaction that is rolled back unless it was committed. An error in ending it is dropped."""
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
        """All the facts on which a rotation is decided. Logs in with each account, and changes nothing.

        Raises :class:`PathDown` if a login failed for a reason other than a refusal of the account.
        """
        pair = secret.pair
        if pair.odd is None or pair.even is None:
            raise RotationError(f"the pair is degraded: it has no {pair.missing} account, and a rotation needs both")
        parities = {pair.odd.username: Parity.ODD, pair.even.username: Parity.EVEN}
        # Before the logins, whose own sessions end a little later than their connections do.
        sessions = await self.sessions(con, parities)
        ends = await self.ends(con, list(parities))
        logins = {Parity.ODD: await self.login(pair.odd), Parity.EVEN: await self.login(pair.even)}
        staged, pending = pair.pending_parity, None
        if staged is not None and pair.pending is not None and not logins[staged].accepted:
            pending = await self.login(pair.pending)
        # A staged password that works has to become the account's current one, whatever the other account's state.
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
        """VALID UNTIL of the roles that exist; None where there is none."""
        return {row["rolname"]: row["valid_until"] for row in await con.fetch(_ROLES, list(names))}

    async def sessions(self, con: Any, parities: dict[str, Parity]) -> tuple[Session, ...]:
        """The sessions of these accounts, as far as the admin role sees them."""
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

    async def login(self, credential: Credential) -> Login:
        """Log in with a new connection on the applications' path, and ask the server who we are."""
        try:
            with no_frames():
                con = await self._verify(credential)
        except Exception as exc:
            return self._failed(exc)
        try:
            async with con.transaction():  # which keeps a pooling proxy on one server connection
                user = await con.fetchval("SELECT session_user")
        except Exception as exc:
            return self._failed(exc)
        finally:
            await close(con)
        if user != credential.username:
            return Login(False, False, f"after logging in as {credential.username!r}, the session's user is {user!r}")
        return Login(True)

    async def login_patiently(self, credential: Credential, timeout: float) -> Login:
        """The outcome of :meth:`login`, after as many tries as may still make it better within ``timeout`` seconds."""
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
        """The server's clock, which also dates the sessions. If ``con`` is lost, a new connection is asked."""
        with contextlib.suppress(*DRIVER_ERRORS):
            return await _time(con)
        async with self.connected() as fresh:
            return await _time(fresh)

    async def alter(self, con: Any, credential: Credential, valid_until: datetime | None = None) -> None:
        """Give the account its password, as a SCRAM-SHA-256 verifier, and a new VALID UNTIL if one is given.

        It takes effect with :meth:`commit`. Raises :class:`RotationError` if the server refuses. The driver's error is
        dropped, since it holds the statement.
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
        """Make what was altered on ``con`` take effect."""
        await con.execute("COMMIT")

    async def terminate(
        self, con: Any, username: str, before: datetime, exempt: Sequence[str] = ()
    ) -> tuple[int, str | None]:
        """End the account's sessions that began before a moment. Returns how many, and what went wrong."""
        try:
            rows = await con.fetch(_TERMINATE, username, before, list(exempt))
        except asyncpg.PostgresError as exc:
            return 0, describe(exc)
        return sum(row["ended"] for row in rows), None

    def _failed(self, exc: BaseException) -> Login:
        # A path that is down says nothing about the password. At a connection limit, the password has been accepted.
        text = f"{describe(exc)} (at {self._path})" if self._path else describe(exc)
        verdict = classify(exc)
        unreachable = verdict is Verdict.OUTAGE and not answered(exc)
        return Login(False, verdict in (Verdict.CREDENTIAL, Verdict.ACCOUNT), text, unreachable)

    def _raise_if_untried(self, pair: CredentialPair, logins: dict[Parity, Login], pending: Login | None) -> None:
        tried = [(account.username, logins[parity]) for parity in Parity if (account := pair[parity])]
        if pending is not None and pair.pending is not None:
            tried.append((pair.pending.username, pending))
        untried = [(name, login) for name, login in tried if not (login.accepted or login.refused)]
        if not untried:
            return
        name, login = untried[0]
        if all(login.unreachable for _, login in tried):
            raise PathDown(f"the applications' path is down: nothing answered: {login.text}. Nothing was changed.")
        raise PathDown(f"{name!r} could not be tried on the applications' path: {login.text}. Nothing was changed.")


async def _time(con: Any) -> datetime:
    now: datetime = await con.fetchval("SELECT clock_timestamp()")
    return now


def _lock_key(purpose: str, pair: CredentialPair) -> int:
    """The same number for the same two accounts, unlikely to be anybody else's."""
    names = "\0".join(sorted(credential.username for credential in (pair.odd, pair.even) if credential))
    return int.from_bytes(hashlib.sha256(f"aiopqr-{purpose}\0{names}".encode()).digest()[:8], "big", signed=True)
