"""The logins of one attempt: one host after another, and an extra login while one of them gets no answer.

The first login goes to the first host. If that is down, the next host is tried. A login without an answer is left
running, since slow is not down, and an extra one starts alongside it: at the next host, and later with the other
account. That helps if the server is slow to refuse this account, or if the network lost the first login but would let a
new one through. The first login to succeed is used. A refusal ends the race, since other hosts would refuse the account
too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import asyncpg

from .._login import Address
from .._refresh import Attempt
from ..clock import TICK, wait_until
from ..errors import ConfigurationError
from ..refusals import Verdict, tries_next_host
from .arguments import Arguments
from .logins import Connected, Failed, Kind, Login, Outcome
from .outage import EXTRA_SPACING
from .state import ConnectorState

_LOOK_AGAIN = 0.25  # seconds between looks while a login gets no answer and there is no room for another


@dataclass(frozen=True, slots=True)
class Refused:
    """The server refused the account, or the attempt is no longer worth making."""


@dataclass(frozen=True, slots=True)
class Down:
    """No host can be reached at the moment, or none has the wanted role. ``error`` is the latest error."""

    error: BaseException


class Race:
    """The logins for one attempt of a connect. ``deadline`` is in loop time."""

    def __init__(self, state: ConnectorState, arguments: Arguments, attempt: Attempt, deadline: float) -> None:
        self._state = state
        self._arguments = arguments
        self._attempt = attempt
        self._using = attempt  # the account for the next login: the attempt's, or the other one
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._untried = self._all_hosts()
        self._racing: list[Login] = []
        self._wake = asyncio.Event()  # a login has ended, or it is time to look again
        self._failures: list[Failed] = []
        self._primaries: set[Address | None] = set()  # primaries to fall back to if a standby is preferred
        self._is_refused = False
        self.tries = 0
        self.last: BaseException | None = None

    async def run(self) -> Connected | Refused | Down:
        """Race until one login succeeds or all have failed.

        Raises errors that waiting cannot cure, and ``TimeoutError``. However the race ends, it cleans up its logins.
        """
        self._state.logins.make_room(Kind.OWN)
        winner: Connected | None = None
        try:
            self._begin(Kind.OWN)
            while self._racing and winner is None:
                look_again = min(self._handle_silence(), self._deadline)
                if not self._racing:
                    break  # none of the unanswered logins is worth waiting for
                await wait_until(look_again, self._wake)
                self._wake.clear()
                winner = self._take_done()
                if winner is None and self._racing and self._deadline - self._loop.time() <= TICK:
                    self._record_silence(at_deadline=True)
                    raise TimeoutError
            return winner or self._nobody_won()
        finally:
            self._end(winner)

    # Logins that have ended.

    def _take_done(self) -> Connected | None:
        # Another connect may have cancelled an extra login to make room for its own.
        self._racing = [login for login in self._racing if not login.is_cancelled]
        done = [login for login in self._racing if login.task.done()]
        if len(done) > 1:  # successes first: if another login fails at the same moment, that must not drop a connection
            done.sort(key=lambda login: not login.has_connected)
        for login in done:
            if login.is_cancelled:
                continue  # it was given up just now, because its account was refused
            self._racing.remove(login)
            outcome = _unless_lost(self._state.logins.take(login))
            self._add_further(login)
            if isinstance(outcome, Connected) and self._has_wanted_role(outcome, login.address):
                self._mark_silent_hosts(login)
                return outcome
            if isinstance(outcome, Failed):
                self._failed(login, outcome)
            elif self._untried and not self._racing:
                self._begin(Kind.OWN)
        if self._racing and all(login.kind is not Kind.OWN for login in self._racing):
            self._racing[0].kind = Kind.OWN  # it takes over the connect's place in the pool
        return None

    def _has_wanted_role(self, connected: Connected, address: Address | None) -> bool:
        """Whether to use the connection. With prefer-standby, a primary is used only if there is no standby.

        A primary is closed, and tried again after all others. If it were kept open, it would be a socket for which the
        pool has no place.
        """
        if not self._arguments.prefers_standby or connected.is_standby:
            return True
        if address in self._primaries or self._primaries >= {*self._untried}:
            return True
        connected.con.terminate()
        self._primaries.add(address)
        self._untried.append(address)
        return False

    def _failed(self, login: Login, failed: Failed) -> None:
        self.last = failed.error
        if failed.verdict.blames_account:
            for other in [one for one in self._racing if one.attempt.credential == login.attempt.credential]:
                self._give_up(other)
            if login.attempt.credential == self._attempt.credential:
                self._is_refused = True
                self._untried = [one for one in self._untried if one in self._primaries]  # these accepted it just now
                if self._untried and not self._racing:
                    self._begin(Kind.OWN)
        elif failed.verdict.is_transient or tries_next_host(failed.error):
            self._failures.append(failed)
            if self._untried:
                self._begin(login.kind)
            elif self._racing and failed.verdict.is_transient:  # do not wait for the others, which may take a while
                self._state.unavailable(failed.error, self._loop.time())
        else:
            raise failed.error

    def _nobody_won(self) -> Refused | Down:
        if self._is_refused or not self._failures:
            return Refused()
        transient = [failed for failed in self._failures if failed.verdict.is_transient]
        if transient and self._finds_no_server():
            raise ConfigurationError(
                f"{self._state.name}: no host is named, and no server runs on this machine (there is no socket, and "
                "localhost refused the connection). Name the host in the DSN, with host=, in PGHOST, or as host in "
                "the secret"
            ) from transient[-1].error
        if transient:
            return Down(transient[-1].error)
        raise self._failures[-1].error

    def _finds_no_server(self) -> bool:
        """Whether no host is named, and there is no server in the places where asyncpg looks by default."""
        target = self._arguments.target
        return (
            target is not None
            and not target.names_host
            and not self._state.has_worked
            and all(isinstance(failed.error, FileNotFoundError | ConnectionRefusedError) for failed in self._failures)
            and any(isinstance(failed.error, FileNotFoundError) for failed in self._failures)
        )

    # Logins that get no answer.

    def _handle_silence(self) -> float:
        """If a login gets no answer, start an extra one if that is allowed. Returns when to look again."""
        state, now, silence = self._state, self._loop.time(), self._state.pace.silence
        for login in self._racing:
            self._add_further(login)
        oldest, newest = self._racing[0], self._racing[-1]
        if now < newest.begun + silence - TICK:
            return newest.begun + silence
        self._record_silence()
        if not state.alternator.is_worthwhile(self._attempt, now):  # refused or superseded by now
            for login in [one for one in self._racing if one.attempt.credential == self._attempt.credential]:
                self._give_up(login)
            if not self._racing:
                self._is_refused = True  # end the race; the next round chooses a better login
                return now
            self._attempt = self._using = self._racing[0].attempt  # the other account's login continues
            return now
        if self._moves_on(oldest, now):
            return self._begin(Kind.OWN).begun + silence
        if (when := state.logins.next_extra(silence)) > now + TICK:
            return min(when, now + EXTRA_SPACING)  # another connect's extra login may end before that
        if len(self._racing) > 1 and now - oldest.begun >= 2 * state.pace.patience:
            self._give_up(oldest)
            newest.kind = Kind.OWN
            oldest = self._racing[0]
        self._plan_next(now)
        if state.logins.make_room(Kind.EXTRA):
            for login in state.logins.extras():  # it has been unanswered for long enough, in this race or another
                state.logins.give_up(login)
            self._racing = [login for login in self._racing if not login.is_cancelled]
            return self._begin(Kind.EXTRA).begun + silence
        if now - oldest.begun < state.pace.patience:
            return now + _LOOK_AGAIN
        kind = oldest.kind  # the new login takes over the place of the old one
        self._give_up(oldest)
        return self._begin(kind).begun + silence

    def _moves_on(self, oldest: Login, now: float) -> bool:
        """Abandon the login if its host is known to be silent and the next one is not. Returns whether it did."""
        hosts = self._state.hosts
        if len(self._racing) > 1 or not self._untried:
            return False
        if not hosts.is_silent(oldest.address, now) or hosts.is_silent(self._untried[0], now):
            return False
        self._give_up(oldest)
        return True

    def _plan_next(self, now: float) -> None:
        """After the last host, start again with the first one, with the other account if that is usable."""
        if not self._untried:
            self._untried = self._all_hosts()
            other = self._state.alternator.fallback(self._attempt, now) if self._using == self._attempt else None
            self._using = other or self._attempt

    def _record_silence(self, *, at_deadline: bool = False) -> None:
        oldest, now = self._racing[0], self._loop.time()
        where = f"{oldest.address} has" if oldest.address else "the server has"
        error = TimeoutError(f"{where} not answered a login for {now - oldest.begun:.1f} s")
        if self.last is None or isinstance(self.last, TimeoutError):
            self.last = error
        self._state.last_failure = self._state.last_failure or error
        silent_for = self._state.pace.silence if at_deadline else self._state.pace.patience
        # If the server has answered other logins since, only this login hangs, and the server is not down.
        since = max(oldest.begun, self._state.answered_at)
        if self._state.outage.since is None and now - since >= silent_for - TICK:
            self._state.unavailable(error, now)

    # Logins.

    def _begin(self, kind: Kind) -> Login:
        address = self._untried.pop(0)
        self.tries += 1
        remaining = self._deadline - self._loop.time()
        login = self._state.begin(kind, self._using, address, self._arguments, remaining, self._wake.set)
        self._racing.append(login)
        return login

    def _give_up(self, login: Login) -> None:
        self._racing.remove(login)
        self._state.logins.give_up(login)

    def _all_hosts(self) -> list[Address | None]:
        return self._state.hosts.in_order(self._arguments.addresses, self._loop.time())

    def _add_further(self, login: Login) -> None:
        """Try the other addresses of the login's host next."""
        self._untried[:0] = login.further
        login.further = []

    def _mark_silent_hosts(self, winner: Login) -> None:
        for login in self._racing:
            if not login.task.done() and login.address != winner.address and login.begun < winner.begun:
                self._state.hosts.was_silent(login.address, self._loop.time())

    def _end(self, winner: Connected | None) -> None:
        for login in self._racing:
            if winner and login.attempt.credential != winner.attempt.credential:
                self._state.logins.let_finish(login, 2 * self._state.pace.patience)
            else:
                self._state.logins.give_up(login)


def _unless_lost(outcome: Outcome | None) -> Outcome | None:
    """The outcome, or a failure if the connection was lost between its login and now, a few loop iterations later."""
    if isinstance(outcome, Connected) and isinstance(outcome.con, asyncpg.Connection) and outcome.con.is_closed():
        error = asyncpg.ConnectionDoesNotExistError("the connection was lost right after its login")
        return Failed(Verdict.OUTAGE, error)
    return outcome
