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

from .._refresh import Attempt
from ..clock import TICK
from ..credentials import Parity
from ..errors import ConnectTimeout, CredentialsExpired, CredentialsRefused, describe, without_frames
from ..events import FellBack
from ..refusals import Verdict, classify
from .alternation import Wait
from .state import LOGIN_FIRST, Arguments, ConnectorState


class Connect:
    """One connect in progress. ``timeout`` is in seconds and covers all of it; None waits for ever."""

    def __init__(self, state: ConnectorState, arguments: Arguments, timeout: float | None) -> None:
        self._state = state
        self._arguments = arguments
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._deadline = None if timeout is None else self._started + timeout
        self._refusals: dict[str, BaseException] = {}
        self._last: BaseException | None = None
        self._tries = 0

    async def run(self, on_begin: Callable[[], None]) -> tuple[Any, Attempt]:
        """The connection, and the attempt that made it. ``on_begin`` is called as each round begins."""
        alternator = self._state.alternator
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
                    self._state.counts.fallbacks += 1
                    if con := await self._try(second):
                        self._tell_fallback(first, second)
                        return con, second
        except _TimeIsUp:
            self._state.counts.failed += 1
        # One that queued behind another's knocking may have met nothing itself.
        self._last = self._last or self._state.last_failure
        raise self._failure() from self._last

    async def _try(self, attempt: Attempt) -> Any:
        """A connection, or None if the account was refused. Waits out an outage, with the same account."""
        state = self._state
        try:
            if state.down_since is None:
                con, verdict = await self._log_in(attempt)
                if not verdict or not verdict.passes:
                    return con
            async with asyncio.timeout_at(self._deadline):
                await state.knocking.acquire()
            try:
                while True:
                    if state.down_since is not None:
                        await self._back_off()
                    # Much may have become known while this one queued and slept.
                    if not state.alternator.is_worthwhile(attempt, self._loop.time()):
                        state.abandoned(attempt, self._loop.time())
                        return None
                    con, verdict = await self._log_in(attempt)
                    if not verdict or not verdict.passes:
                        return con
            finally:
                state.knocking.release()
        except BaseException as exc:
            state.abandoned(attempt, self._loop.time())
            if isinstance(exc, TimeoutError) and self._is_late():
                raise _TimeIsUp from None
            raise

    async def _log_in(self, attempt: Attempt) -> tuple[Any, Verdict | None]:
        """A connection; or None, and what the failure means. A fatal one is raised."""
        state, begun = self._state, self._loop.time()
        patience = LOGIN_FIRST * 2 ** min(self._tries, 10)
        timeout = patience if self._deadline is None else min(self._remaining(), patience)
        self._tries += 1
        attempt = replace(attempt, begun=begun)  # it may have waited out an outage, and is judged by when it was made
        try:
            con = await state.log_in(attempt, self._arguments, timeout)
        except Exception as exc:
            now = self._loop.time()
            verdict = classify(exc, unix_socket=self._arguments.unix_socket)
            without_frames(exc)
            # A login that was cut off by the deadline tells less than what was met before it.
            if self._last is None or not (isinstance(exc, TimeoutError) and self._is_late()):
                self._last = state.last_failure = exc
            if isinstance(exc, asyncpg.PostgresError) and not verdict.passes:
                state.answered(now)
            if verdict.blames_account:
                self._refusals[attempt.credential.username] = exc
                state.refused(attempt, verdict, exc, now)
            elif verdict.passes:
                state.down(exc, now)
            else:
                state.counts.failed += 1
                raise
            return None, verdict
        now = self._loop.time()
        state.counts.accounts[attempt.parity].opened += 1
        state.counts.connect_time.record(now - begun)
        state.accepted(attempt, now)
        return con, None

    async def _wait_for_newer(self, until: float) -> None:
        """Wait for newer credentials, or until a login is worth making all the same."""
        if self._state.alternator.is_refused(self._loop.time()):
            self._state.request_newer()
        limit = until if self._deadline is None else min(until, self._deadline)
        try:
            async with asyncio.timeout_at(limit):
                await self._state.refresher.wait_changed()
        except TimeoutError:
            if self._is_late():
                raise _TimeIsUp from None

    async def _back_off(self) -> None:
        # From the last knock, not from now: connects with little time would never knock otherwise.
        pause = max(self._state.knock_at - self._loop.time(), 0.0)
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
        state = self._state
        names: dict[str, Any] = {"parity": taken.parity, "username": taken.credential.username}
        state.events.emit(FellBack(name=state.name, refused=refused.parity, **names))

    def _failure(self) -> Exception:
        state = self._state
        waited = f"{self._loop.time() - self._started:.1f} s"
        if state.alternator.has_expired(self._loop.time()):
            return CredentialsExpired(state.expired(waited), self._refusals)
        if state.alternator.is_refused(self._loop.time()):
            pair = state.alternator.pair
            names = " and ".join(f"{parity} ({c.username})" for parity in Parity if (c := pair[parity]))
            return CredentialsRefused(
                f"{state.name}: {names} refused; the pair is {state.refresher.pair_age:.0f} s old, and nothing newer "
                f"came within {waited}",
                self._refusals,
            )
        last = describe(self._last) if self._last else "none was worth making"
        return ConnectTimeout(f"{state.name}: no connection within {waited}, {self._tries} logins tried; last: {last}")


class _TimeIsUp(Exception):
    pass
