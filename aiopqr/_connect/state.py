"""What all connects of a connector know together: it makes their logins, and keeps what came of them."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from .._login import KeyCache, login
from .._refresh import Attempt, Need, Refresher
from ..clock import TICK
from ..errors import describe
from ..events import (
    AccountQuarantined,
    AccountRecovered,
    AllRefused,
    Emitter,
    LoginRefused,
    ServerRecovered,
    ServerUnavailable,
)
from ..options import hosts
from ..refusals import Verdict, classify
from ..stats import ConnectorCounts
from .alternation import Alternator

logger = logging.getLogger("aiopqr")

# A login may hang in a network that swallows. The first of a connect gets this long, each further one twice as long.
LOGIN_FIRST = 5.0
BACKOFF_FIRST = 0.05
BACKOFF_MAX = 1.0


class Arguments:
    """What the driver's connect is called with, but for account, password and timeout."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs

    @property
    def unix_socket(self) -> bool:
        """Whether the server is sought at a socket's path, too."""
        named = hosts(self.args, self.kwargs)
        # Without a host, asyncpg looks for a socket first.
        return not named or any(host.startswith("/") for host in named)


class ConnectorState:
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
        self.alternator = Alternator(refresher.pair, refresher.quarantine, refresher.announcement, refresher.expiry)
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
            elif verdict is not Verdict.FATAL:  # which the next probe, when it is due, would meet again
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
        is_starved = self.alternator.is_refused(asyncio.get_running_loop().time())
        self.refresher.request(Need.STARVED if is_starved else Need.REFUSED)

    def expired(self, waited: str) -> str:
        """What to tell whoever gets no connection since every account has expired."""
        now, pair = asyncio.get_running_loop().time(), self.alternator.pair
        ends = (
            f"{account.username}, {now - self.alternator.expiry.at(account):.0f} s ago"
            for account in pair.credentials()
        )
        return (
            f"{self.name}: the credentials have expired ({'; '.join(ends)}), and nothing newer came within {waited}; "
            "see why the source does not renew them"
        )

    def down(self, exc: BaseException, now: float) -> None:
        self.counts.outages += 1
        if self.down_since is None:
            self.down_since = now
            self.events.emit(ServerUnavailable(name=self.name, error=describe(exc)))
        if now >= self.knock_at - TICK:  # those that fail together count once
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
