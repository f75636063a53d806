"""The two state machines together, in virtual time: connects in flight, rotations, a store, outages, in any order.

The world below does what ``connecting`` and ``refresher`` do with the machines, and nothing else: it makes no
decisions. Hypothesis plays the network, the database's administrator and the store.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiopqr._connect.account_choice import FULL_PAUSE, Alternator, Wait
from aiopqr._refresh.expiry import Expiry
from aiopqr._refresh.plan import BACKOFF_MAX, URGENT_MAX, Need, RefreshPlan
from aiopqr._refresh.quarantine import PROBE_FIRST, PROBE_MAX, Attempt, Quarantine
from aiopqr._refresh.renaming import Renaming
from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.refusals import Verdict

Verdicts = Verdict | None  # None: logged in
LONGEST_SLEEP = PROBE_MAX * 1.2


@dataclass(eq=False)
class Login:
    attempt: Attempt
    begun: float
    result: Verdicts = None
    decided: bool = False  # the server has made up its mind, and the answer is on its way


@dataclass(eq=False)
class Sleep:
    until: float
    news: int | None = None  # ends early if there is more


Step = Login | Sleep
Process = Generator[Step, Verdicts, bool]


@dataclass(eq=False)
class Flight:
    ticket: int
    pair: CredentialPair


@dataclass
class Known:
    """What is known about one credential, so that a login can be judged."""

    refused: list[float] = field(default_factory=list)  # when each login began
    accepted: list[float] = field(default_factory=list)
    last_refusal: float = -math.inf

    def is_refused(self) -> bool:
        """Whether the newest thing heard, by when its login began, is a refusal."""
        return max(self.refused, default=-math.inf) > max(self.accepted, default=-math.inf)


class World:
    """A database, a store, connectors that share a refresher, and their connects. Time passes only on request."""

    def __init__(self, connectors: int, interval: float, rnd: random.Random) -> None:
        self.now = 1000.0
        self.rnd = rnd
        self.interval = interval
        self.serial = 0
        self.database = {parity: Credential(f"app_{parity}", f"p0{parity}") for parity in Parity}
        self.store = self.pair = CredentialPair(**{str(p): c for p, c in self.database.items()})
        self.down = False
        self.full: set[Parity] = set()
        self.plan = RefreshPlan(interval, self.now, uniform=rnd.uniform)
        quarantine = Quarantine(rnd.uniform)
        self.expiry = Expiry()
        self.renaming = Renaming()
        self.alternators = [
            Alternator(self.pair, quarantine, expiry=self.expiry, _local=Quarantine(rnd.uniform))
            for _ in range(connectors)
        ]
        self.processes: dict[Process, Step] = {}
        self.flight: Flight | None = None
        self.given_up: list[Flight] = []
        self.known: dict[Credential, Known] = {}
        self.turns: dict[int, list[Parity]] = {number: [] for number in range(connectors)}
        self.owed: int | None = None  # the ticket of the fetch that a request during a flight is owed
        self.paused: dict[tuple[int, str], float] = {}
        self.news = 0  # newer pairs, and accounts that may be worth a login again
        self.done = 0

    def utc(self, seconds: float = 0.0) -> datetime:
        """The calendar's time, some seconds from now."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now + seconds)

    def is_expired(self, credential: Credential, since: float = 0.0) -> bool:
        return credential.expires_at is not None and self.utc(-since) >= credential.expires_at

    # What one connect does.

    def connect(self, number: int) -> Process:
        alternator = self.alternators[number]
        while True:
            healthy = self.is_healthy(alternator)
            first = alternator.begin(self.now)
            if isinstance(first, Wait):
                assert self.now < first.until < self.now + LONGEST_SLEEP + 1, "a wait that ends, and not at once"
                if alternator.is_refused(self.now):
                    self.request(Need.STARVED)
                yield Sleep(first.until, self.news)
                continue
            self.count_turn(number, first, healthy)
            if probe := alternator.probe(self.now):
                self.run(self.log_in(number, probe))
            if (yield from self.log_in(number, first)):
                return True
            if alternator.is_superseded(first, self.now):
                continue
            if second := alternator.fallback(first, self.now):
                assert second.parity is first.parity.other
                assert not second.probe
                self.turns[number].clear()
                if (yield from self.log_in(number, second)):
                    return True

    def log_in(self, number: int, attempt: Attempt) -> Process:
        alternator = self.alternators[number]
        knocks = 0
        try:
            while True:
                self.judge(number, attempt, was_put_off=knocks > 0)
                verdict = yield Login(attempt, self.now)
                known = self.known.setdefault(attempt.credential, Known())
                if verdict is None:
                    known.accepted.append(attempt.begun)
                    self.paused.pop((number, attempt.credential.username), None)
                    if alternator.accepted(attempt, self.now) is not None:
                        self.news += 1
                    return True
                if verdict.blames_account:
                    anew = alternator.rejected(attempt, verdict, self.now)
                    if verdict is Verdict.ACCOUNT_FULL:
                        self.paused[number, attempt.credential.username] = self.now + FULL_PAUSE
                        return False
                    known.refused.append(attempt.begun)
                    if anew or attempt.probe:  # another login in flight is no reason to wait longer
                        known.last_refusal = self.now
                    self.request(Need.STARVED if alternator.is_refused(self.now) else Need.REFUSED)
                    return False
                knocks += 1
                yield Sleep(self.now + self.rnd.uniform(0.5, 1.0) * min(0.05 * 2**knocks, 1.0))
                if not alternator.is_worthwhile(attempt, self.now):
                    self.abandon(alternator, attempt)
                    return False
                # Each login is judged by when it began itself.
                attempt = replace(attempt, begun=self.now)
        except GeneratorExit:
            self.abandon(alternator, attempt)
            raise

    def abandon(self, alternator: Alternator, attempt: Attempt) -> None:
        alternator.abandoned(attempt, self.now)
        if attempt.probe:
            self.news += 1

    def judge(self, number: int, attempt: Attempt, *, was_put_off: bool) -> None:
        """No login with a password known to be refused, except for a due probe, nor with a paused account."""
        assert not self.is_expired(attempt.credential, since=0.001), "a login with what has expired"
        known = self.known.get(attempt.credential)
        paused = self.paused.get((number, attempt.credential.username), -math.inf)
        assert self.now >= paused or was_put_off, "a login with an account that is full"
        if known and known.is_refused():
            assert attempt.probe, "a login with what is known to be refused"
            is_due = self.now >= known.last_refusal + 0.8 * PROBE_FIRST
            assert is_due or was_put_off, "a probe that is not due"

    def is_healthy(self, alternator: Alternator) -> bool:
        return not alternator._full_until and all(
            (c := alternator.pair[p]) and alternator.refused_since(c) is None and not self.is_expired(c) for p in Parity
        )

    def count_turn(self, number: int, attempt: Attempt, healthy: bool) -> None:
        turns = self.turns[number]
        if not healthy:
            turns.clear()
        turns.append(attempt.parity)
        assert abs(turns.count(Parity.ODD) - turns.count(Parity.EVEN)) <= 1, "fair while both accounts are healthy"

    # What the refresher does.

    def need(self) -> Need:
        if any(alternator.is_refused(self.now) for alternator in self.alternators):
            return Need.STARVED
        shared, accounts = self.alternators[0].refused, [c for c in (self.pair.odd, self.pair.even) if c]
        bad = any(c in shared or self.expiry.has_passed(c, self.now) for c in accounts)
        return Need.REFUSED if bad else Need.NONE

    def request(self, need: Need) -> None:
        ticket = self.plan.request(need, self.now)
        assert ticket == self.plan.started + 1, "the fetch that is promised starts after the request"
        if self.flight:
            self.owed = ticket
        else:
            assert self.plan.due < math.inf

    def begin_fetch(self) -> None:
        ticket = self.plan.start(self.now)
        if ticket is not None:
            assert self.flight is None, "one flight at a time"
            self.flight = Flight(ticket, self.store)
            if ticket == self.owed:
                self.owed = None

    def land(self, *, ok: bool) -> None:
        flight, self.flight = self.flight, None
        assert flight is not None
        if ok:
            self.pair = self.renaming.completed(flight.pair)
            self.expiry.update(self.pair, self.now, self.utc())
            self.news += 1
            for alternator in self.alternators:
                alternator.replace(self.pair)
            remaining = self.expiry.remaining(self.pair, self.now)
            assert self.plan.succeeded(flight.ticket, self.need(), self.now, remaining=remaining)
            assert remaining is None or self.plan.due < self.now + max(remaining, 1.0), "renewed before it expires"
        else:
            assert self.plan.failed(flight.ticket, self.need(), self.now)
        longest = max(self.interval, 30.0) if ok else BACKOFF_MAX
        assert self.plan.due <= self.now + longest or (ok and not self.interval and self.need() is Need.NONE)
        if self.owed is not None:
            assert self.plan.due <= self.now + BACKOFF_MAX, "a request made during a flight is not forgotten"

    def give_up(self) -> None:
        flight = self.flight
        assert flight is not None
        self.land(ok=False)
        self.given_up.append(flight)

    # Time, and who runs when.

    def run(self, process: Process, answer: Verdicts = None) -> None:
        """Continue a process until it waits again."""
        self.processes.pop(process, None)
        try:
            step = process.send(answer)
        except StopIteration as stop:
            self.done += bool(stop.value)
        else:
            self.processes[process] = step

    def wake(self) -> None:
        """Make everything happen that is due now."""
        for process, step in list(self.processes.items()):
            is_over = isinstance(step, Sleep) and (
                step.until <= self.now or (step.news is not None and step.news < self.news)
            )
            if is_over and process in self.processes:
                self.run(process)
        self.begin_fetch()

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(3_000):
            self.wake()
            sleeps = [step.until for step in self.processes.values() if isinstance(step, Sleep)]
            if any(isinstance(step, Sleep) and step.news not in (None, self.news) for step in self.processes.values()):
                continue
            due = min([*sleeps, math.inf if self.flight else self.plan.due])
            if due > end:
                self.now = end
                return
            self.now = max(self.now, due)
        raise AssertionError("time does not pass: something happens over and over at one moment")

    def logins(self) -> list[tuple[Process, Login]]:
        return [(process, step) for process, step in self.processes.items() if isinstance(step, Login)]

    def decide(self, login: Login) -> None:
        """The server answers according to its current state."""
        parity = next(p for p, c in self.database.items() if c.username == login.attempt.credential.username)
        login.decided = True
        if self.down:
            login.result = Verdict.OUTAGE
        elif self.database[parity] != login.attempt.credential or self.is_expired(self.database[parity]):
            login.result = Verdict.CREDENTIAL
        else:
            login.result = Verdict.ACCOUNT_FULL if parity in self.full else None

    def is_starved(self) -> bool:
        return any(a.is_refused(self.now) for a in self.alternators) and any(
            isinstance(step, Sleep) and step.news is not None for step in self.processes.values()
        )


class Machine(RuleBasedStateMachine):
    @initialize(connectors=st.integers(1, 3), interval=st.sampled_from([0.0, 1.0, 60.0]), seed=st.integers(0, 2**32))
    def begin(self, connectors: int, interval: float, seed: int) -> None:
        self.world = World(connectors, interval, random.Random(seed))
        self.world.wake()

    @rule(number=st.integers(0, 2))
    def start_a_connect(self, number: int) -> None:
        self.world.run(self.world.connect(number % len(self.world.alternators)))

    @precondition(lambda self: self.world.logins())
    @rule(pick=st.integers(0, 99))
    def the_server_decides(self, pick: int) -> None:
        logins = self.world.logins()
        login = logins[pick % len(logins)][1]
        if not login.decided:
            self.world.decide(login)

    @precondition(lambda self: self.world.logins())
    @rule(pick=st.integers(0, 99))
    def an_answer_arrives(self, pick: int) -> None:
        logins = self.world.logins()
        process, login = logins[pick % len(logins)]
        if not login.decided:
            self.world.decide(login)
        self.world.run(process, login.result)

    @precondition(lambda self: self.world.logins())
    @rule()
    def every_answer_arrives(self) -> None:
        for process, login in self.world.logins():
            login.decided or self.world.decide(login)
            self.world.run(process, login.result)

    @precondition(lambda self: self.world.processes)
    @rule(pick=st.integers(0, 99))
    def a_connect_is_cancelled(self, pick: int) -> None:
        process = list(self.world.processes)[pick % len(self.world.processes)]
        del self.world.processes[process]
        process.close()

    @rule(parity=st.sampled_from(Parity))
    def a_password_is_changed(self, parity: Parity) -> None:
        world = self.world
        world.serial += 1
        world.database[parity] = Credential(f"app_{parity}", f"p{world.serial}")

    @rule(parity=st.sampled_from(Parity), seconds=st.sampled_from([3.0, 40.0, 900.0]))
    def a_token_is_issued(self, parity: Parity, seconds: float) -> None:
        world = self.world
        world.serial += 1
        world.database[parity] = Credential(f"app_{parity}", f"p{world.serial}", world.utc(seconds))

    @rule(parity=st.sampled_from(Parity))
    def the_store_names_one_account_only(self, parity: Parity) -> None:
        self.world.store = CredentialPair.single(self.world.database[parity])

    @rule(parity=st.sampled_from(Parity))
    def a_password_is_changed_back(self, parity: Parity) -> None:
        if account := next((c for c in self.world.pair.credentials() if c.username == f"app_{parity}"), None):
            self.world.database[parity] = account

    @rule(active=st.sampled_from(Parity), missing=st.sampled_from([None, None, None, *Parity]))
    def the_store_shows_what_is_true(self, active: Parity, missing: Parity | None) -> None:
        accounts = {str(p): None if p is missing else c for p, c in self.world.database.items()}
        self.world.store = CredentialPair(**accounts, active=active)

    @rule(parity=st.sampled_from(Parity))
    def the_store_holds_a_password_as_pending(self, parity: Parity) -> None:
        if not self.world.store.is_single:
            self.world.store = replace(self.world.store, pending=self.world.database[parity])

    @rule()
    def the_store_lies(self) -> None:
        if not self.world.pair.last_resort:  # which no store shows
            self.world.store = self.world.pair

    @precondition(lambda self: self.world.flight)
    @rule(ok=st.booleans(), newest=st.booleans())
    def the_store_answers(self, ok: bool, newest: bool) -> None:
        assert self.world.flight
        if newest:
            self.world.flight.pair = self.world.store
        self.world.land(ok=ok)

    @precondition(lambda self: self.world.flight)
    @rule()
    def a_fetch_is_given_up(self) -> None:
        self.world.give_up()

    @precondition(lambda self: self.world.given_up)
    @rule(ok=st.booleans())
    def a_fetch_that_was_given_up_answers(self, ok: bool) -> None:
        world = self.world
        before = world.plan.due, world.plan.in_flight, world.plan.failures
        end = world.plan.succeeded if ok else world.plan.failed
        assert not end(world.given_up.pop().ticket, Need.NONE, world.now)
        assert before == (world.plan.due, world.plan.in_flight, world.plan.failures)

    @rule()
    def somebody_asks_for_a_refresh(self) -> None:
        self.world.request(Need.ASKED)
        assert self.world.flight or self.world.plan.due <= self.world.now

    @precondition(lambda self: not self.world.flight)
    @rule()
    def the_store_is_read(self) -> None:
        self.world.request(Need.ASKED)
        self.world.begin_fetch()
        self.world.land(ok=True)

    @precondition(lambda self: not self.world.flight)
    @rule(number=st.integers(0, 2))
    def the_store_keeps_what_expired_hours_ago(self, number: int) -> None:
        for parity in Parity:
            self.a_token_is_issued(parity, 3.0)
        self.the_store_shows_what_is_true(Parity.ODD, None)
        for hours in (0, 2, 0):
            self.world.now += 3600 * hours
            self.the_store_is_read()
        self.start_a_connect(number)

    @rule(down=st.booleans())
    def the_server_goes_or_comes(self, down: bool) -> None:
        self.world.down = down

    @rule(parity=st.sampled_from(Parity), is_full=st.booleans())
    def an_account_fills_up_or_empties(self, parity: Parity, is_full: bool) -> None:
        (self.world.full.add if is_full else self.world.full.discard)(parity)

    @rule(seconds=st.one_of(st.floats(0.0, 3.0), st.sampled_from([0.0, 5.0, 31.0, 100.0, 1000.0])))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule()
    def all_is_well_again(self) -> None:
        """A connect succeeds when the store has published what works, and soon if that was never refused."""
        world = self.world
        world.down = False
        world.full.clear()
        for parity in [p for p in Parity if world.database[p].expires_at]:  # one that lasts while connects wait
            self.a_token_is_issued(parity, 100_000.0)
        if not any(account in world.database.values() for p in Parity if (account := world.store[p])):
            self.the_store_shows_what_is_true(Parity.ODD, None)
        works = [c for p in Parity if (c := world.store[p]) and c in world.database.values()]
        tried = {*world.known, *(login.attempt.credential for _, login in world.logins())}
        fresh = any(c not in tried for c in works)
        for number in range(len(world.alternators)):
            world.run(world.connect(number))
        waited_for = list(world.processes)
        limit = world.now + (3 * URGENT_MAX + FULL_PAUSE if fresh else 3 * LONGEST_SLEEP)
        while any(process in world.processes for process in waited_for):
            assert world.now <= limit, "a connect goes without although the store has published what works"
            for process, login in world.logins():
                login.decided or world.decide(login)
                world.run(process, login.result)
            if world.flight:
                world.land(ok=True)
            world.pass_time(0.01 if world.logins() else 0.25)

    @invariant()
    def whoever_starves_is_fed_soon(self) -> None:
        world = getattr(self, "world", None)
        if world and not world.flight and world.is_starved():
            assert world.plan.due <= world.now + URGENT_MAX, "a starved connect waits for a fetch that is soon"


TestMachine = Machine.TestCase
