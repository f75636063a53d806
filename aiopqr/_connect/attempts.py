"""One connect in progress.

It goes in rounds: first the account whose turn it is, then the other one if the first was refused. While the server is
down, connects take turns. Within a turn, logins race: one host after the other, and an extra one while one is silent.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import asyncpg

from .._refresh import Attempt
from ..clock import TICK
from ..credentials import Parity
from ..errors import AiopqrError, ConnectTimeout, CredentialsRefused, describe
from ..events import FellBack
from .account_choice import Wait
from .arguments import Arguments
from .logins import Connected
from .race import Down, Race, Refused
from .state import ConnectorState

# How long no server needs to have the wanted role: a switchover takes some seconds. After that it is a mistake again.
SWITCHOVER = 10.0


class Connect:
    """One connect in progress. ``timeout`` is in seconds and covers all of it; None sets no limit."""

    def __init__(self, state: ConnectorState, arguments: Arguments, timeout: float | None) -> None:
        self._state = state
        self._arguments = arguments
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._deadline = math.inf if timeout is None else self._started + timeout
        self._last: BaseException | None = None
        self._tries = 0

    async def run(self, on_begin: Callable[[], None]) -> Connected:
        """The connection, and the attempt that made it. ``on_begin`` is called as each round begins."""
        try:
            while True:
                first = self._state.alternator.begin(self._loop.time())
                if isinstance(first, Wait):
                    await self._wait_for_newer(first.until)
                    continue
                on_begin()
                if connected := await self._round(self._not_silent(first)):
                    return connected
        except _TimeIsUp:
            # One that waited for its turn may have met nothing itself.
            cause = self._last or self._state.last_failure
            self._state.counts.failed += 1
            raise self._failure(cause) from cause
        except Exception:
            self._state.counts.failed += 1
            raise
        except BaseException:
            # A caller that gives up while logins fail counts as a failed connect.
            self._state.counts.failed += self._last is not None or self._state.outage.since is not None
            raise

    async def _round(self, first: Attempt) -> Connected | None:
        """Log in with one account, and with the other one if that is refused."""
        alternator = self._state.alternator
        if connected := await self._try(first):
            return connected
        if alternator.is_superseded(first, self._loop.time()):
            return None
        second = alternator.fallback(first, self._loop.time())
        if second is None:
            return None
        self._state.counts.fallbacks += 1
        connected = await self._try(second)
        if connected and connected.attempt.parity != first.parity:
            taken = connected.attempt
            self._state.events.emit(
                FellBack(
                    name=self._state.name,
                    refused=first.parity,
                    parity=taken.parity,
                    username=taken.credential.username,
                )
            )
        return connected

    def _not_silent(self, first: Attempt) -> Attempt:
        """The other account, if the server is slow to answer this one alone (to refuse it, under ``auth_delay``)."""
        now = self._loop.time()
        silent = self._state.logins.silent(now - self._state.pace.silence)
        if first.probe or first.credential not in silent:
            return first
        second = self._state.alternator.fallback(first, now)
        return second if second and second.credential not in silent else first

    async def _try(self, attempt: Attempt) -> Connected | None:
        """A connection, or None if the account was refused, or is not worth trying any more. Waits out an outage."""
        state = self._state
        try:
            if state.outage.since is None:
                outcome = await self._race(attempt)
                if not isinstance(outcome, Down):
                    return _connected(outcome)
            while True:
                async with _Turn(state, self._deadline):
                    # Much may have become known while this one waited.
                    if not state.alternator.is_worthwhile(attempt, self._loop.time()):
                        state.abandoned(attempt, self._loop.time())
                        return None
                    outcome = await self._race(attempt)
                    if not isinstance(outcome, Down):
                        return _connected(outcome)
        except BaseException as exc:
            state.abandoned(attempt, self._loop.time())
            if isinstance(exc, TimeoutError) and self._is_late():
                raise _TimeIsUp from None
            raise

    async def _race(self, attempt: Attempt) -> Connected | Refused | Down:
        race = Race(self._state, self._arguments, attempt, self._deadline)
        try:
            outcome = await race.run()
        finally:
            self._tries += race.tries
            self._last = race.last or self._last
        if isinstance(outcome, Down):
            now = self._loop.time()
            self._state.unavailable(outcome.error, now)
            if isinstance(outcome.error, asyncpg.TargetServerAttributeNotMatched) and self._state.outage.lasts(
                now, SWITCHOVER
            ):
                raise outcome.error
        return outcome

    async def _wait_for_newer(self, until: float) -> None:
        """Wait for newer credentials, or until a login is worth making all the same."""
        if self._state.alternator.is_refused(self._loop.time()):
            self._state.request_newer()
        try:
            async with asyncio.timeout_at(_finite(min(until, self._deadline))):
                await self._state.feed.wait_changed()
        except TimeoutError:
            if self._is_late():
                raise _TimeIsUp from None

    def _is_late(self) -> bool:
        return self._deadline - self._loop.time() <= TICK

    def _failure(self, cause: BaseException | None) -> AiopqrError:
        state = self._state
        waited = f"{self._loop.time() - self._started:.1f} s"
        advice = "" if state.has_worked else "; run `aiopqr check` to find out why"
        if expired := state.expired():
            return expired
        if state.alternator.is_refused(self._loop.time()):
            pair, expiry, now = state.alternator.pair, state.alternator.expiry, self._loop.time()
            accounts = [(parity, c) for parity in Parity if (c := pair[parity])]
            names = " and ".join(
                f"{parity} ({c.username}{', which has expired' if expiry.has_passed(c, now) else ''})"
                for parity, c in accounts
            )
            if padded := [c.username for _, c in accounts if c.is_padded]:
                advice += f"; the password of {' and '.join(padded)} begins or ends with white space: should it?"
            return CredentialsRefused(
                f"{state.name}: the server refused {names}. The credentials were last fetched "
                f"{state.feed.pair_age:.0f} s ago, and no newer ones came within {waited}{advice}",
                state.refusals(),
            )
        last = describe(cause) if cause else "none was worth making"
        return ConnectTimeout(
            f"{state.name}: no connection within {waited}, {self._tries} logins tried; last: {last}{advice}"
        )


class _Turn:
    """A turn to log in during an outage: begins when no other is under way, or the others have been silent."""

    def __init__(self, state: ConnectorState, deadline: float) -> None:
        self._state = state
        self._deadline = deadline

    async def __aenter__(self) -> None:
        state, loop = self._state, asyncio.get_running_loop()
        async with asyncio.timeout_at(_finite(self._deadline)), state.turns:
            while (begins := state.outage.next_turn(state.pace.silence)) > loop.time():
                try:
                    async with asyncio.timeout_at(begins):
                        await state.turn_ended.wait()
                except TimeoutError:
                    if self._deadline <= loop.time() + TICK:
                        raise
            state.outage.begin_turn(loop.time())

    async def __aexit__(self, *exc: object) -> None:
        self._state.outage.end_turn()
        self._state.wake_turns()


class _TimeIsUp(Exception):
    """The connect's time is up."""


def _connected(outcome: Connected | Refused) -> Connected | None:
    return outcome if isinstance(outcome, Connected) else None


def _finite(when: float) -> float | None:
    return None if when == math.inf else when
