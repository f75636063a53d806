"""One connect in progress.

It is rounds of at most two logins: the account whose turn it is, and the other one if that was refused. While
the server is down, one connect at a time knocks and the others queue behind it, so that a server that comes back is not
met by a herd.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import asyncpg

from .alternation import Attempt, Wait
from .credentials import Parity
from .desk import LOGIN_FIRST, Arguments, Desk
from .errors import ConnectTimeout, CredentialsRefused, describe, without_frames
from .events import FellBack
from .refusals import Verdict, classify
from .tasks import TICK


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
        attempt = replace(attempt, begun=begun)  # it may have waited out an outage, and is judged by when it was made
        try:
            con = await desk.log_in(attempt, self._arguments, timeout)
        except Exception as exc:
            now = self._loop.time()
            verdict = classify(exc, unix_socket=self._arguments.unix_socket)
            without_frames(exc)
            # A login that was cut off by the deadline tells less than what was met before it.
            if self._last is None or not (isinstance(exc, TimeoutError) and self._is_late()):
                self._last = desk.last_failure = exc
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
        if remaining <= TICK:
            raise _TimeIsUp
        return remaining

    def _is_late(self) -> bool:
        return self._deadline is not None and self._deadline - self._loop.time() <= TICK

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
