"""One connect in progress.

A connect works in rounds. Each round tries the account whose turn it is, and then the other one if the first is
refused. While the server is down, concurrent connects take turns. For each account, logins race: one host after
another, and an extra login while one of them gets no answer.
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

# How many seconds to wait if no server has the wanted role, since a switchover takes a while. After that, it is an
# error.
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
        """Return the connection with the attempt that made it. ``on_begin`` is called at the start of each round."""
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
            # A connect that only waited for its turn has no failure of its own.
            cause = self._last or self._state.last_failure
            self._state.counts.failed += 1
            raise self._failure(cause) from cause
        except Exception:
            self._state.counts.failed += 1
            raise
        except BaseException:
            # If the caller gives up while logins are failing, that counts as a failed connect.
            self._state.counts.failed += self._last is not None or self._state.outage.since is not None
            raise

    async def _round(self, first: Attempt) -> Connected | None:
        """Try to log in with one account and, if that is refused, with the other one."""
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
        """``first``, or the other account if only logins with the first get no answer.

        That happens if ``auth_delay`` makes the server slow to refuse them.
        """
        now = self._loop.time()
        silent = self._state.logins.silent(now - self._state.pace.silence)
        if first.probe or first.credential not in silent:
            return first
        second = self._state.alternator.fallback(first, now)
        return second if second and second.credential not in silent else first

    async def _try(self, attempt: Attempt) -> Connected | None:
        """A connection, or None if the account was refused or is no longer worth trying. Waits out an outage."""
        state = self._state
        try:
            if state.outage.since is None:
                outcome = await self._race(attempt)
                if not isinstance(outcome, Down):
                    return _connected(outcome)
            while True:
                async with _Turn(state, self._deadline):
                    # Other connects may have learned something about the account in the meantime.
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
        """Wait for newer credentials, but no longer than until a login is worth trying without them."""
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
                advice += f"; the password of {' and '.join(padded)} begins or ends with white space: is that intended?"
            return CredentialsRefused(
                f"{state.name}: the server refused {names}. The credentials were last fetched "
                f"{state.feed.pair_age:.0f} s ago, and no newer ones came within {waited}{advice}",
                state.refusals(),
            )
        last = describe(cause) if cause else "none was worth trying"
        return ConnectTimeout(
            f"{state.name}: no connection within {waited}, {self._tries} logins tried; last: {last}{advice}"
        )


class _Turn:
    """A turn to log in during an outage. It begins when no other is in progress, or the others get no answer."""

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
    """The connect's timeout has passed."""


def _connected(outcome: Connected | Refused) -> Connected | None:
    return outcome if isinstance(outcome, Connected) else None


def _finite(when: float) -> float | None:
    return None if when == math.inf else when
