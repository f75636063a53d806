"""Simulates a fleet of instances: aiopqr's real state machines, in virtual time, without sockets or servers.

Each instance has its own refresh plan, quarantine, alternator and connections; the database and the secret store are
a few lines each. An event queue takes the place of sockets, clock and event loop, so an hour of ten thousand instances
takes only seconds. This module repeats, in the shortest form, what :mod:`aiopqr._connect.attempts`,
:mod:`aiopqr._pool.replacement` and :mod:`aiopqr._refresh.refresher` do with their state machines.

The store is AWS Secrets Manager, read as :mod:`aiopqr.sources.aws` reads it: a DescribeSecret for each fetch, and a
GetSecretValue for each version that is not known yet. Each kind of call is throttled above its own limit. The server
accepts any number of logins; the simulation counts what the fleet asks of it.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aiopqr import Credential, CredentialPair, Parity
from aiopqr._connect.account_choice import Alternator
from aiopqr._pool.connection import Lifetime
from aiopqr._pool.connections import CONNECT_TIMEOUT
from aiopqr._pool.replacement import BACKOFF_FIRST, BACKOFF_MAX
from aiopqr._refresh.announcement import Announcement
from aiopqr._refresh.plan import Need, RefreshPlan
from aiopqr._refresh.quarantine import Attempt, Quarantine
from aiopqr.refusals import Verdict

DESCRIBE_LIMIT = 40_000.0  # per second for one AWS account and region, as AWS documents it
GET_LIMIT = 10_000.0
START_SPREAD = 1.0  # the source's default, before an instance's first fetch
STORE_LATENCY = 0.05
LOGIN = 0.01  # from one replacement to the next


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated. Times are in seconds. ``rotate_every`` is 0 for a single rotation, and ``inf`` for none.

    A single rotation comes at the worst moment. Instances that start together also replace their connections together,
    in one wave, a lifetime later. The password changes in the middle of that wave.
    """

    instances: int
    connections: int = 20
    lifetime: float = 1800.0
    jitter: float | None = None  # default: a tenth of the lifetime
    interval: float = 60.0
    duration: float = 3600.0
    rotate_every: float = 0.0
    store_lag: float = 1.0  # from the database's change to the store's
    announce: float = 0.0  # from staging a password to its change in the database
    outage: tuple[float, float] | None = None  # start and end of the time when the store is down
    start_within: float = 0.0  # 0: all instances start at the same moment
    seed: int = 1

    @property
    def rotations(self) -> list[float]:
        if self.rotate_every == math.inf:
            return []
        worst = 0.95 * self.lifetime
        if not self.rotate_every:
            return [worst]
        first = worst % self.rotate_every
        count = int((self.duration - first) // self.rotate_every)
        return [first + self.rotate_every * number for number in range(count + 1) if first or number]


@dataclass(slots=True)
class Counts:
    """How often something happened, second by second."""

    seconds: int
    series: array[int] = field(init=False)

    def __post_init__(self) -> None:
        self.series = array("L", bytes(array("L").itemsize * (self.seconds + 1)))

    def add(self, now: float) -> None:
        self.series[int(now)] += 1

    def total(self, since: float = 0.0) -> int:
        return sum(self.series[int(since) :])

    def peak(self, since: float = 0.0, until: float = math.inf) -> int:
        return max(self.series[int(since) : None if until == math.inf else math.ceil(until)], default=0)


class Limited:
    """Calls of one kind. The store answers no more than ``limit`` of them per second."""

    def __init__(self, limit: float, seconds: int) -> None:
        self.made = Counts(seconds)
        self.throttled = 0
        self._limit = self._tokens = limit
        self._filled = 0.0

    def answers(self, now: float) -> bool:
        """Make a call, and return whether the store answers it."""
        self.made.add(now)
        self._tokens = min(self._limit, self._tokens + (now - self._filled) * self._limit)
        self._filled = now
        if self._tokens < 1:
            self.throttled += 1
            return False
        self._tokens -= 1
        return True


class Instance:
    """One process of the service: a pool of connections, and the state machines that look after its credentials."""

    __slots__ = (
        *(
            "alternator",
            "announcement",
            "due",
            "failed",
            "failures",
            "give_up",
            "plan",
            "quarantine",
            "replacing",
            "stale_since",
        ),
        *("turn", "version", "waits"),
    )

    def __init__(self, plan: RefreshPlan, quarantine: Quarantine) -> None:
        self.version = 0  # of the secret: the newest that it has read
        self.failed = 0  # failed logins since the last rotation
        self.failures = 0  # failures to open a replacement, in a row
        self.give_up = 0.0  # when the replacement's connect times out
        self.plan = plan
        self.quarantine = quarantine
        self.alternator: Alternator | None = None
        self.announcement = Announcement()
        self.stale_since: float | None = None  # when it was left without a valid password
        self.due = 0  # connections to be replaced
        self.replacing = False
        self.waits = False  # the replacement waits for newer credentials
        self.turn = 0  # a scheduled event does nothing if this has changed in the meantime


class Simulation:
    """Runs a fleet from its start to the end of its duration."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.now = 0.0
        self._uniform = random.Random(fleet.seed).uniform
        self._lifetime = Lifetime(
            fleet.lifetime, fleet.lifetime / 10 if fleet.jitter is None else fleet.jitter, self._uniform
        )
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._passwords = 0
        self.in_force = CredentialPair(odd=self._new(Parity.ODD), even=self._new(Parity.EVEN))
        self.stored, self._version = self.in_force, 2  # AWSPREVIOUS and AWSCURRENT
        seconds = int(fleet.duration)
        self.describes, self.gets = Limited(DESCRIBE_LIMIT, seconds), Limited(GET_LIMIT, seconds)
        self.connects, self.failed_logins = Counts(seconds), Counts(seconds)
        self.most_failed = 0  # failed logins of one instance, from one rotation to the next
        self.started = 0  # instances that have their connections
        self.all_started: float | None = None
        self.worst_stale = 0.0
        self.waited = 0  # how many times a replacement had to wait because no account worked
        self.instances = [self._instance() for _ in range(fleet.instances)]

    def run(self) -> Simulation:
        fleet = self.fleet
        for instance in self.instances:
            self._at(self._uniform(0.0, fleet.start_within) + self._uniform(0.0, START_SPREAD), self._fetch, instance)
        for number, when in enumerate(fleet.rotations):
            self._at(when - fleet.announce, self._stage, Parity.ODD if number % 2 == 0 else Parity.EVEN)
        events = self._events
        while events and events[0][0] < fleet.duration:
            self.now, _, act, arguments = heapq.heappop(events)
            act(*arguments)
        self.now = fleet.duration
        for instance in self.instances:
            self._judge(instance)
            self.most_failed = max(self.most_failed, instance.failed)
            if instance.stale_since is not None:
                self.worst_stale = max(self.worst_stale, self.now - instance.stale_since)
        return self

    def _instance(self) -> Instance:
        return Instance(RefreshPlan(self.fleet.interval, 0.0, uniform=self._uniform), Quarantine(self._uniform))

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, act, arguments))

    # The database, and the store.

    def _new(self, parity: Parity) -> Credential:
        self._passwords += 1
        return Credential(f"app_{parity}", f"password {self._passwords}")

    def _stage(self, parity: Parity) -> None:
        new = self._new(parity)
        if self.fleet.announce:
            self._store(replace(self.in_force, pending=new))
        self._at(self.now + self.fleet.announce, self._rotate, parity, new)

    def _rotate(self, parity: Parity, new: Credential) -> None:
        changes: dict[str, Any] = {str(parity): new}
        self.in_force = replace(self.in_force, **changes)
        self._at(self.now + self.fleet.store_lag, self._store, self.in_force)
        for instance in self.instances:
            self._judge(instance)
            self.most_failed = max(self.most_failed, instance.failed)
            instance.failed = 0

    def _store(self, pair: CredentialPair) -> None:
        self.stored = pair
        self._version += 1

    def _answer(self, instance: Instance) -> CredentialPair | None:
        """What the store answers to a fetch made now. None if it does not answer."""
        outage = self.fleet.outage
        if not self.describes.answers(self.now) or (outage and outage[0] <= self.now < outage[1]):
            return None
        for _ in range(min(self._version - instance.version, 2)):  # the staged versions that are not known yet
            if not self.gets.answers(self.now):
                return None
        instance.version = self._version
        return self.stored

    def _logs_in(self, instance: Instance, attempt: Attempt) -> bool:
        self.connects.add(self.now)
        if self.in_force[attempt.parity] == attempt.credential:
            return True
        self.failed_logins.add(self.now)
        instance.failed += 1
        return False

    # An instance's refresher.

    def _fetch(self, instance: Instance) -> None:
        """Do what the instance's refresher does when it wakes up."""
        plan = instance.plan
        ticket = plan.start(self.now)
        if ticket is not None:
            self._at(self.now + STORE_LATENCY, self._landed, instance, ticket, self._answer(instance))

    def _plan_fetch(self, instance: Instance) -> None:
        # If the due time is moved, the event that was planned for the old one finds nothing to do.
        if instance.plan.due < self.fleet.duration:
            self._at(max(instance.plan.due, self.now), self._fetch, instance)

    def _landed(self, instance: Instance, ticket: int, pair: CredentialPair | None) -> None:
        if pair is None:
            instance.plan.failed(ticket, self._need(instance), self.now)
        else:
            self._install(instance, pair)
            instance.plan.succeeded(ticket, self._need(instance), self.now)
        self._plan_fetch(instance)

    def _install(self, instance: Instance, pair: CredentialPair) -> None:
        list(instance.announcement.update(pair, self.now))
        if instance.alternator is None:
            instance.alternator = Alternator(pair, instance.quarantine, instance.announcement)
            self._open(instance)
            self.started += 1
            if self.started == self.fleet.instances:
                self.all_started = self.now
        elif pair != instance.alternator.pair:
            instance.alternator.replace(pair)
            if instance.waits:
                self._go_on(instance, instance.turn)
        self._judge(instance)

    def _need(self, instance: Instance) -> Need:
        alternator = instance.alternator
        if alternator is None:
            return Need.STARVED
        if alternator.is_refused(self.now):
            return Need.STARVED
        pair = alternator.pair
        return Need.REFUSED if any(one in instance.quarantine for one in pair.credentials()) else Need.NONE

    def _judge(self, instance: Instance) -> None:
        """Track how long the instance has had only passwords that are no longer valid."""
        if instance.alternator is None:
            return
        held, true = instance.alternator.pair, self.in_force
        if held.odd != true.odd and held.even != true.even:
            if instance.stale_since is None:
                instance.stale_since = self.now
        elif instance.stale_since is not None:
            self.worst_stale = max(self.worst_stale, self.now - instance.stale_since)
            instance.stale_since = None

    # An instance's connects.

    def _open(self, instance: Instance) -> None:
        """Open the pool's first connections, all at once: all begin before the server has answered any."""
        alternator = instance.alternator
        assert alternator is not None
        for step in [alternator.begin(self.now) for _ in range(self.fleet.connections)]:
            if not (isinstance(step, Attempt) and self._try_both(instance, step)):
                instance.due += 1
        self._replace(instance)

    def _expire(self, instance: Instance) -> None:
        """A connection's lifetime is over. It stays in use until it is replaced. One is replaced at a time."""
        instance.due += 1
        self._replace(instance)

    def _replace(self, instance: Instance) -> None:
        alternator = instance.alternator
        assert alternator is not None
        if instance.replacing or not instance.due:
            return
        instance.replacing = True
        if not instance.waits:
            instance.give_up = self.now + CONNECT_TIMEOUT
        step = alternator.begin(self.now)
        while isinstance(step, Attempt) and not self._try_both(instance, step):
            step = alternator.begin(self.now)
        instance.turn += 1
        if isinstance(step, Attempt):
            instance.waits, instance.failures = False, 0
            instance.due -= 1
            if instance.due:
                self._at(self.now + LOGIN, self._go_on, instance, instance.turn)
            else:
                instance.replacing = False
        else:
            self.waited += not instance.waits
            instance.waits = True
            self._ask(instance)
            if step.until < instance.give_up:
                self._at(step.until, self._go_on, instance, instance.turn)
            else:
                self._at(instance.give_up, self._delay, instance, instance.turn)

    def _go_on(self, instance: Instance, turn: int) -> None:
        """The previous login is done, a probe is due, or newer credentials have arrived: whichever comes first."""
        if turn == instance.turn:
            instance.replacing = False
            self._replace(instance)

    def _delay(self, instance: Instance, turn: int) -> None:
        """The replacement could not be opened: try again after a while."""
        if turn == instance.turn:
            instance.waits = False
            instance.failures += 1
            pause = min(BACKOFF_FIRST * 2 ** min(instance.failures - 1, 10), BACKOFF_MAX)
            self._at(self.now + self._uniform(0.5, 1.0) * pause, self._go_on, instance, turn)

    def _try_both(self, instance: Instance, attempt: Attempt) -> bool:
        alternator = instance.alternator
        assert alternator is not None
        if not alternator.is_refused(self.now) and (probe := alternator.probe(self.now)):
            self._try(instance, probe, keep=False)
        if self._try(instance, attempt):
            return True
        second = alternator.fallback(attempt, self.now)
        return second is not None and self._try(instance, second)

    def _try(self, instance: Instance, attempt: Attempt, *, keep: bool = True) -> bool:
        alternator = instance.alternator
        assert alternator is not None
        if self._logs_in(instance, attempt):
            alternator.accepted(attempt, self.now)
            if keep:
                deadline = self._lifetime.deadline(self.now)
                if deadline < self.fleet.duration:
                    self._at(deadline, self._expire, instance)
            return True
        alternator.rejected(attempt, Verdict.CREDENTIAL, self.now)
        self._ask(instance)
        return False

    def _ask(self, instance: Instance) -> None:
        assert instance.alternator is not None
        need = Need.STARVED if instance.alternator.is_refused(self.now) else Need.REFUSED
        before = instance.plan.due
        instance.plan.request(need, self.now)
        if instance.plan.due < before:
            self._plan_fetch(instance)


def simulate(fleet: Fleet) -> dict[str, Any]:
    """Run a fleet, and return what it asked of the store and of the server. Rates are per second."""
    run = Simulation(fleet).run()
    # The means and peaks leave out the start, which has figures of its own.
    steady = min((run.all_started or fleet.duration) + 2.0, fleet.duration)
    span = max(fleet.duration - steady, 1.0)
    describes, gets = run.describes.made, run.gets.made
    return {
        "instances": fleet.instances,
        "lifetime": fleet.lifetime,
        "interval": fleet.interval,
        "duration": fleet.duration,
        "rotations": len(fleet.rotations),
        "outage": fleet.outage,
        "all_started": run.all_started,
        "calls_mean": (describes.total(steady) + gets.total(steady)) / span,
        "describes_peak": describes.peak(steady),
        "gets_peak": gets.peak(steady),
        "describes_peak_start": describes.peak(until=steady),
        "gets_peak_start": gets.peak(until=steady),
        "throttled": run.describes.throttled + run.gets.throttled,
        "connects_mean": run.connects.total(steady) / span,
        "connects_peak": run.connects.peak(steady),
        "connects_peak_start": run.connects.peak(until=steady),
        "failed_logins": run.failed_logins.total(),
        "failed_peak": run.failed_logins.peak(),
        "most_failed": run.most_failed,
        "worst_stale": run.worst_stale,
        "waited": run.waited,
        "series": {
            "calls": [one + other for one, other in zip(describes.series[:-1], gets.series[:-1], strict=True)],
            "connects": list(run.connects.series[:-1]),
            "failed": list(run.failed_logins.series[:-1]),
        },
    }
