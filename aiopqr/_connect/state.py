"""The state that all connects of a connector share. It makes their logins and records the outcomes."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from .._login import Address, KeyCache, login
from .._refresh import Attempt, Feed, Need
from ..credentials import CredentialPair
from ..errors import CredentialsExpired, describe, without_frames
from ..events import (
    AccountQuarantined,
    AccountRecovered,
    AllRefused,
    Emitter,
    LoginRefused,
    ServerRecovered,
    ServerUnavailable,
)
from ..refusals import Verdict, classify
from ..stats import ConnectorCounts
from .account_choice import Alternator
from .arguments import Arguments, resolved
from .logins import Connected, Failed, Kind, Login, Logins, Outcome
from .outage import Hosts, Outage, Pace
from .roles import CHECK_FOR, NO_WRITER, QUESTIONS

logger = logging.getLogger("aiopqr")


class ConnectorState:
    """Makes the logins of one connector and records their outcomes: counts, events, outages, refusals."""

    def __init__(
        self,
        name: str,
        events: Emitter,
        feed: Feed,
        connect: Callable[..., Awaitable[Any]] | None,
        keys: KeyCache | None,
        logins: Logins,
    ) -> None:
        self.name = name
        self.events = events
        self.feed = feed
        self.alternator = Alternator(feed.pair, feed.quarantine, feed.announcement, feed.expiry)
        self.counts = ConnectorCounts()
        self.keys = keys
        self.logins = logins
        self.outage = Outage()
        self.pace = Pace()
        self.hosts = Hosts()
        self.turns = asyncio.Lock()  # held by the connect whose turn is next, until its turn begins
        self.turn_ended = asyncio.Event()
        self.answered_at = -math.inf  # when the server last accepted or refused a login
        self.has_worked = False  # whether any login has succeeded yet
        self._check_roles_until = -math.inf
        self.last_failure: BaseException | None = None
        self._refusals: dict[str, BaseException] = {}  # the latest of each account, by username
        self._connect = connect
        self._warned = False

    def begin(
        self,
        kind: Kind,
        attempt: Attempt,
        address: Address | None,
        arguments: Arguments,
        timeout: float,
        on_end: Callable[[], object] = lambda: None,
    ) -> Login:
        """Start a login. Its outcome is recorded even if the caller is gone by then. ``timeout`` may be infinite.

        ``on_end`` is called when the login ends, perhaps twice.
        """
        now = asyncio.get_running_loop().time()
        # The attempt may have waited for the end of an outage. What counts is when its login begins.
        attempt = Attempt(attempt.parity, attempt.credential, attempt.version, now, attempt.probe)
        started = Login(attempt, address, kind, now, on_end)
        # A race cancels its logins at its deadline. A probe has no race, and a user's own connect= expects a timeout.
        is_raced = kind is not Kind.PROBE and self._connect is None
        limit = None if is_raced or timeout == math.inf else timeout
        return self.logins.begin(started, self._perform(started, arguments, limit))

    async def _perform(self, made: Login, arguments: Arguments, timeout: float | None) -> Outcome:
        loop, attempt = asyncio.get_running_loop(), made.attempt
        try:
            if made.address is not None and not (made.address.ip or made.address.is_socket):
                async with asyncio.timeout(timeout):
                    await self._resolve(made, made.address)
            con = await login(
                # asyncpg's own pool calls this function too. Look it up each time, since agents replace it.
                self._connect or asyncpg.connection.connect,
                *arguments.args,
                user=attempt.credential.username,
                password=attempt.credential.password,
                cache=self.keys,
                trust=arguments.trust,
                ip=made.address.ip if made.address else None,
                timeout=timeout,
                **arguments.kwargs_for(made.address),
            )
            is_standby = arguments.session_attribute != "any" and await self._examine(con, arguments, timeout)
        except Exception as exc:
            return self._failed(made, arguments, without_frames(exc), loop.time())
        except BaseException:
            if made.kind in (Kind.ABANDONED, Kind.PROBE):
                self.abandoned(attempt, loop.time())
            raise
        finally:
            made.on_end()  # nothing is awaited after this; a done callback would come one loop iteration later
        now = loop.time()
        self.counts.accounts[attempt.parity].opened += made.kind in (Kind.OWN, Kind.EXTRA)
        self.counts.connect_time.record(now - made.begun)
        self.pace.record(now - made.begun)
        self.hosts.answered(made.address)
        self.accepted(attempt, now)
        return Connected(con, attempt, is_standby)

    def _failed(self, made: Login, arguments: Arguments, exc: Exception, now: float) -> Failed:
        is_socket = made.address is not None and made.address.is_socket
        # A user's own connect= decides for itself which server it wants, so its error about that is raised immediately.
        is_theirs = self._connect is not None and isinstance(exc, asyncpg.TargetServerAttributeNotMatched)
        verdict = classify(exc, unix_socket=is_socket, has_worked=self.has_worked and not is_theirs)
        if isinstance(exc, FileNotFoundError) and not is_socket:
            exc = arguments.explained(exc)
        if isinstance(exc, asyncpg.PostgresError) and not verdict.is_transient:
            self.answered(now)
        if verdict.blames_account:
            self.refused(made.attempt, verdict, exc, now)
        elif made.kind in (Kind.ABANDONED, Kind.PROBE) and verdict is not Verdict.FATAL:
            # After a fatal error, another probe would fail in the same way, so do not allow one before it is due.
            self.abandoned(made.attempt, now)
        if made.kind is not Kind.PROBE:
            self.last_failure = exc
        return Failed(verdict, exc)

    async def _resolve(self, made: Login, address: Address) -> None:
        """Look up the host's name, so that each of its addresses is tried."""
        found = await resolved(address)
        made.address, *made.further = self.hosts.in_order(found, asyncio.get_running_loop().time())

    def check_roles(self) -> None:
        """From now on, ask the servers of new connections whether they accept writes, whatever they report.

        Called when a connection's server has turned out not to accept writes.
        """
        self._check_roles_until = asyncio.get_running_loop().time() + CHECK_FOR

    async def _examine(self, con: Any, arguments: Arguments, timeout: float | None) -> bool:
        """Check the role of a new connection's server. Returns whether it is a standby, if one is preferred.

        Raises the error that asyncpg has for it if the server must accept writes and does not.
        """
        question = QUESTIONS.get(arguments.session_attribute)
        if asyncio.get_running_loop().time() >= self._check_roles_until:
            question = None
        if question is None and not arguments.prefers_standby:
            return False
        try:
            async with asyncio.timeout(timeout):
                if question is None:
                    return await _is_standby(con)
                if await con.execute(question) == NO_WRITER:
                    self.check_roles()
                    raise asyncpg.TargetServerAttributeNotMatched(
                        f"the server does not accept writes ({arguments.session_attribute})"
                    )
        except asyncpg.SyntaxOrAccessError:
            pass  # the server does not understand the question
        except BaseException:
            con.terminate()
            raise
        return False

    def probe(self, attempt: Attempt, arguments: Arguments) -> None:
        """Start a login in the background that tests whether a refused account works again."""
        now = asyncio.get_running_loop().time()
        if self.logins.make_room(Kind.PROBE):
            self.counts.probes += 1
            address = self.hosts.in_order(arguments.addresses, now)[0]
            self.begin(Kind.PROBE, attempt, address, arguments, self.pace.patience)
        else:
            self.abandoned(attempt, now)

    def refused(self, attempt: Attempt, verdict: Verdict, exc: BaseException, now: float) -> None:
        self.counts.accounts[attempt.parity].refused += 1
        self._refusals[attempt.credential.username] = exc
        were_all_refused = self.alternator.is_refused(now)
        is_new = self.alternator.rejected(attempt, verdict, now)
        fields: dict[str, Any] = {
            "name": self.name,
            "parity": attempt.parity,
            "username": attempt.credential.username,
            "verdict": verdict.value,
            "sqlstate": getattr(exc, "sqlstate", None),
        }
        if is_new:
            retry_in = self.alternator.retry_at(attempt.credential) - now
            self.events.emit(AccountQuarantined(**fields, retry_in=retry_in))
        else:
            self.events.emit(LoginRefused(**fields))
        if self.alternator.is_refused(now) and not were_all_refused:
            names = tuple(c.username for c in self.alternator.pair.credentials())
            self.events.emit(AllRefused(name=self.name, usernames=names, pair_age=self.feed.pair_age))
        if verdict is not Verdict.ACCOUNT_FULL:
            self.request_newer()
        if isinstance(exc.__cause__, asyncpg.PostgresError) and not self._warned:
            self._warned = True
            logger.warning(
                "%s: with sslmode=prefer (asyncpg's default) or allow, asyncpg repeats a refused login without or with "
                "TLS, so the server counts each refusal twice; set sslmode=require or disable",
                self.name,
            )

    def refusals(self) -> dict[str, BaseException]:
        """The server's latest refusal of each account, by username."""
        return dict(self._refusals)

    def replace(self, pair: CredentialPair) -> None:
        """Use a newer pair, and forget the refusals and keys of old credentials."""
        left = [c for c in self.alternator.pair.credentials() if c not in pair.credentials()]
        self.alternator.replace(pair)
        for credential in left:
            self._refusals.pop(credential.username, None)
        if self.keys is not None:
            self.keys.keep_only(pair.credentials())

    def request_newer(self) -> None:
        is_starved = self.alternator.is_refused(asyncio.get_running_loop().time())
        self.feed.request(Need.STARVED if is_starved else Need.REFUSED)

    def expired(self) -> CredentialsExpired | None:
        """The error to raise if every account has expired, or None."""
        now, alternator = asyncio.get_running_loop().time(), self.alternator
        if not alternator.has_expired(now):
            return None
        accounts = (account for account in (alternator.pair.odd, alternator.pair.even) if account)
        ends = (f"{account.username} {now - alternator.expiry.at(account):.0f} s ago" for account in accounts)
        why = "the source has not returned newer ones: find out why it does not renew them"
        if self.feed.last_error:
            why = f"newer ones cannot be fetched: {self.feed.last_error}"
        text = f"{self.name}: the credentials have expired ({', '.join(ends)}), and {why}"
        return CredentialsExpired(text, self.refusals())

    def unavailable(self, exc: BaseException, now: float) -> None:
        """Record that a login failed for a transient reason, or got no answer for too long."""
        self.last_failure = exc
        if self.outage.failed(now):
            self.counts.outages += 1
            self.events.emit(ServerUnavailable(name=self.name, error=describe(exc)))

    def accepted(self, attempt: Attempt, now: float) -> None:
        after = self.alternator.accepted(attempt, now)
        if after is not None:
            names: dict[str, Any] = {"parity": attempt.parity, "username": attempt.credential.username}
            self.events.emit(AccountRecovered(name=self.name, after=after, **names))
            self.feed.wake_waiting()
        self.answered(now)
        self.has_worked = True
        self.last_failure = None
        self._refusals.pop(attempt.credential.username, None)

    def abandoned(self, attempt: Attempt, now: float) -> None:
        """Record that the attempt was inconclusive. If it was a probe, another connect may make it."""
        self.alternator.abandoned(attempt, now)
        if attempt.probe:
            self.feed.wake_waiting()

    def answered(self, now: float) -> None:
        """Record that the server accepted or refused a login, which means that it is up."""
        self.answered_at = now
        lasted = self.outage.answered(now)
        if lasted is not None:
            self.events.emit(ServerRecovered(name=self.name, after=lasted))
            self.wake_turns()

    def wake_turns(self) -> None:
        """Wake everyone who waits for a turn, so that they look again."""
        self.turn_ended.set()
        self.turn_ended = asyncio.Event()


async def _is_standby(con: Any) -> bool:
    """Whether the connection's server is a standby."""
    reported = getattr(con.get_settings(), "in_hot_standby", None)  # since Postgres 14
    if reported is not None:
        return bool(reported == "on")
    return bool(await con.fetchval("select pg_catalog.pg_is_in_recovery()"))
