"""One connect in progress, and what all connects of a connector know together.

A connect is rounds of at most two logins: the account whose turn it is, and the other one if that was refused. While
the server is down, one connect at a time knocks and the others queue behind it, so that a server that comes back is not
met by a herd.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from .alternation import Alternator, Attempt, Wait
from .credentials import Parity
from .errors import ConnectTimeout, CredentialsRefused, describe, without_frames
from .events import (
    AccountQuarantined,
    AccountRecovered,
    AllRefused,
    Emitter,
    FellBack,
    LoginRefused,
    ServerRecovered,
    ServerUnavailable,
)
from .login import KeyCache, login
from .options import hosts
from .refresher import Refresher
from .refreshing import Need
from .refusals import Verdict, classify
from .stats import ConnectorCounts

logger = logging.getLogger("aiopqr")

BACKOFF_FIRST = 0.05
BACKOFF_MAX = 1.0
# A login may hang in a network that swallows. The first of a connect gets this long, each further one twice as long.
LOGIN_FIRST = 5.0


class Desk:
    """Makes the logins of one connector, and keeps what came of them: counts, events, an outage, a refusal."""

    def __init__(
        self,
        name: str,
        events: Emitter,
        refresher: Refresher,
        connect: Callable[..., Awaitable[Any]],
        keys: KeyCache | None,
    ) -> None:
        self.name = name
        self.events = events
        self.refresher = refresher
        self.alternator = Alternator(refresher.pair, refresher.quarantine)
        self.counts = ConnectorCounts()
        self.keys = keys
        self.knocking = asyncio.Lock()
        self.knocks = 0
        self.knock_at = -math.inf  # the earliest time for the next knock, whoever makes it
        self.down_since: float | None = None
        self.last_failure: BaseException | None = None
        self._connect = connect
        self._warned = False

    async def log_in(self, attempt: Attempt, arguments: Arguments, timeout: float | None) -> Any:
        """One login, or the driver's error."""
        credential = attempt.credential
        return await login(
            self._connect,
            *arguments.args,
            user=credential.username,
            password=credential.password,
            cache=self.keys,
            timeout=timeout,
            **arguments.kwargs,
        )

    async def probe(self, attempt: Attempt, arguments: Arguments) -> None:
        """Find out whether a refused account works again."""
        loop = asyncio.get_running_loop()
        self.counts.probes += 1
        try:
            con = await self.log_in(attempt, arguments, LOGIN_FIRST)
        except Exception as exc:
            verdict = classify(exc, unix_socket=arguments.unix_socket)
            if verdict.blames_account:
                self.refused(attempt, verdict, exc, loop.time())
            else:
                self.abandoned(attempt, loop.time())
        except BaseException:
            self.abandoned(attempt, loop.time())
            raise
        else:
            self.accepted(attempt, loop.time())
            con.terminate()

    def refused(self, attempt: Attempt, verdict: Verdict, exc: BaseException, now: float) -> None:
        self.counts.accounts[attempt.parity].refused += 1
        were_all_refused = self.alternator.is_refused()
        anew = self.alternator.rejected(attempt, verdict, now)
        told: dict[str, Any] = {
            "name": self.name,
            "parity": attempt.parity,
            "username": attempt.credential.username,
            "verdict": verdict.value,
            "sqlstate": getattr(exc, "sqlstate", None),
        }
        if anew:
            retry_in = self.alternator.retry_at(attempt.credential) - now
            self.events.emit(AccountQuarantined(**told, retry_in=retry_in))
        else:
            self.events.emit(LoginRefused(**told))
        if self.alternator.is_refused() and not were_all_refused:
            names = tuple(c.username for c in self.alternator.pair.credentials())
            self.events.emit(AllRefused(name=self.name, usernames=names, pair_age=self.refresher.pair_age))
        if verdict is not Verdict.ACCOUNT_FULL:
            self.request_newer()
        if isinstance(exc.__cause__, asyncpg.PostgresError) and not self._warned:
            self._warned = True
            logger.warning(
                "%s: sslmode=prefer (asyncpg's default) and allow log in a second time where the first is refused, so "
                "each refusal counts twice at the server: say sslmode=require, or disable",
                self.name,
            )

    def request_newer(self) -> None:
        self.refresher.request(Need.STARVED if self.alternator.is_refused() else Need.REFUSED)

    def down(self, exc: BaseException, now: float) -> None:
        self.counts.outages += 1
        if self.down_since is None:
            self.down_since = now
            self.events.emit(ServerUnavailable(name=self.name, error=describe(exc)))
        if now >= self.knock_at:  # those that fail together count once
            self.knocks += 1
            longest = min(BACKOFF_FIRST * 2 ** min(self.knocks, 10), BACKOFF_MAX)
            self.knock_at = now + random.uniform(0.5, 1.0) * longest

    def accepted(self, attempt: Attempt, now: float) -> None:
        after = self.alternator.accepted(attempt, now)
        if after is not None:
            names: dict[str, Any] = {"parity": attempt.parity, "username": attempt.credential.username}
            self.events.emit(AccountRecovered(name=self.name, after=after, **names))
            self.refresher.wake_waiting()
        self.answered(now)
        self.last_failure = None

    def abandoned(self, attempt: Attempt, now: float) -> None:
        """The attempt told nothing of its account. If it was a probe, it is for another to make."""
        self.alternator.abandoned(attempt, now)
        if attempt.probe:
            self.refresher.wake_waiting()

    def answered(self, now: float) -> None:
        """The server lets in or refuses: it is up."""
        if self.down_since is not None:
            self.events.emit(ServerRecovered(name=self.name, after=now - self.down_since))
            self.down_since = None
        self.knocks, self.knock_at = 0, -math.inf


class Arguments:
    """What the driver's connect is called with, but for account, password and timeout."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        named = hosts(args, kwargs)
        # Without a host, asyncpg looks for a socket first.
        self.unix_socket = not named or any(host.startswith("/") for host in named)


class Connect:
    """One connect in progress. ``timeout`` is in seconds and covers all of it; None waits for ever."""

    def __init__(self, desk: Desk, arguments: Arguments, timeout: float | None) -> None:
        self._desk = desk
        self._arguments = arguments
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._deadline = None if timeout is None else self._started + timeout
        self._refusals: dict[str, BaseException] = {}
        self._last: BaseException | None = None
        self._tries = 0

    async def run(self, on_begin: Callable[[], None]) -> tuple[Any, Attempt]:
        """The connection, and the attempt that made it. ``on_begin`` is called as each round begins."""
        alternator = self._desk.alternator
        try:
            while True:
                first = alternator.begin(self._loop.time())
                if isinstance(first, Wait):
                    await self._wait_for_newer(first.until)
                    continue
                on_begin()
                if con := await self._try(first):
                    return con, first
                if alternator.is_superseded(first):
                    continue
                if second := alternator.fallback(first, self._loop.time()):
                    self._desk.counts.fallbacks += 1
                    if con := await self._try(second):
                        self._tell_fallback(first, second)
                        return con, second
        except _TimeIsUp:
            self._desk.counts.failed += 1
        # One that queued behind another's knocking may have met nothing itself.
        self._last = self._last or self._desk.last_failure
        raise self._failure() from self._last

    async def _try(self, attempt: Attempt) -> Any:
        """A connection, or None if the account was refused. Waits out an outage, with the same account."""
        desk = self._desk
        try:
            if desk.down_since is None:
                con, verdict = await self._log_in(attempt)
                if not verdict or not verdict.passes:
                    return con
            async with asyncio.timeout_at(self._deadline):
                await desk.knocking.acquire()
            try:
                while True:
                    if desk.down_since is not None:
                        await self._back_off()
                    # Much may have become known while this one queued and slept.
                    if not desk.alternator.is_worthwhile(attempt):
                        desk.abandoned(attempt, self._loop.time())
                        return None
                    con, verdict = await self._log_in(attempt)
                    if not verdict or not verdict.passes:
                        return con
            finally:
                desk.knocking.release()
        except BaseException as exc:
            desk.abandoned(attempt, self._loop.time())
            if isinstance(exc, TimeoutError) and self._is_late():
                raise _TimeIsUp from None
            raise

    async def _log_in(self, attempt: Attempt) -> tuple[Any, Verdict | None]:
        """A connection; or None, and what the failure means. A fatal one is raised."""
        desk, begun = self._desk, self._loop.time()
        patience = LOGIN_FIRST * 2 ** min(self._tries, 10)
        timeout = patience if self._deadline is None else min(self._remaining(), patience)
        self._tries += 1
        try:
            con = await desk.log_in(attempt, self._arguments, timeout)
        except Exception as exc:
            now = self._loop.time()
            verdict = classify(exc, unix_socket=self._arguments.unix_socket)
            self._last = desk.last_failure = without_frames(exc)
            if isinstance(exc, asyncpg.PostgresError) and not verdict.passes:
                desk.answered(now)
            if verdict.blames_account:
                self._refusals[attempt.credential.username] = exc
                desk.refused(attempt, verdict, exc, now)
            elif verdict.passes:
                desk.down(exc, now)
            else:
                desk.counts.failed += 1
                raise
            return None, verdict
        now = self._loop.time()
        desk.counts.accounts[attempt.parity].opened += 1
        desk.counts.connect_time.record(now - begun)
        desk.accepted(attempt, now)
        return con, None

    async def _wait_for_newer(self, until: float) -> None:
        """Wait for newer credentials, or until a login is worth making all the same."""
        if self._desk.alternator.is_refused():
            self._desk.request_newer()
        limit = until if self._deadline is None else min(until, self._deadline)
        try:
            async with asyncio.timeout_at(limit):
                await self._desk.refresher.wait_changed()
        except TimeoutError:
            if self._is_late():
                raise _TimeIsUp from None

    async def _back_off(self) -> None:
        # From the last knock, not from now: connects with little time would never knock otherwise.
        pause = max(self._desk.knock_at - self._loop.time(), 0.0)
        await asyncio.sleep(pause if self._deadline is None else min(pause, self._remaining()))

    def _remaining(self) -> float:
        assert self._deadline is not None
        remaining = self._deadline - self._loop.time()
        if remaining <= 0:
            raise _TimeIsUp
        return remaining

    def _is_late(self) -> bool:
        return self._deadline is not None and self._loop.time() >= self._deadline

    def _tell_fallback(self, refused: Attempt, taken: Attempt) -> None:
        desk = self._desk
        names: dict[str, Any] = {"parity": taken.parity, "username": taken.credential.username}
        desk.events.emit(FellBack(name=desk.name, refused=refused.parity, **names))

    def _failure(self) -> Exception:
        desk = self._desk
        waited = f"{self._loop.time() - self._started:.1f} s"
        if desk.alternator.is_refused():
            pair = desk.alternator.pair
            names = " and ".join(f"{parity} ({c.username})" for parity in Parity if (c := pair[parity]))
            return CredentialsRefused(
                f"{desk.name}: {names} refused; the pair is {desk.refresher.pair_age:.0f} s old, and nothing newer "
                f"came within {waited}",
                self._refusals,
            )
        last = describe(self._last) if self._last else "none was worth making"
        return ConnectTimeout(f"{desk.name}: no connection within {waited}, {self._tries} logins tried; last: {last}")


class _TimeIsUp(Exception):
    pass
