"""A fleet of instances, simulated: the real machines of aiopqr, in virtual time, with nothing behind them.

Each instance has its own refresh plan, quarantine, alternator and connections; the database and the secret store are
a few lines each. No socket, no clock, no loop: an event queue, so that ten thousand instances and an hour take seconds.
What :mod:`aiopqr.connecting` and :mod:`aiopqr.refresher` do with their machines is repeated here in its shortest form.

The store is AWS Secrets Manager's: 10,000 calls a second for an account and region, beyond which it throttles. The
server takes any number of logins: what is counted is what the fleet asks of it.
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
from aiopqr.alternation import Alternator, Attempt, Quarantine
from aiopqr.lifetimes import Lifetime
from aiopqr.refreshing import Need, RefreshPlan
from aiopqr.refusals import Verdict

STORE_LIMIT = 10_000.0  # GetSecretValue, a second, for an account and region
STORE_LATENCY = 0.05
LOGIN = 0.01  # from one replacement to the next


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated. Times are in seconds; ``rotate_every`` 0: one rotation; ``inf``: none.

    One rotation comes at the worst moment. Instances that start together have their connections replaced in one wave,
    too, a lifetime later; in the middle of that wave a password changes.
    """

    instances: int
    connections: int = 20
    lifetime: float = 1800.0
    jitter: float | None = None  # a tenth of the lifetime, unless given
    interval: float = 60.0
    duration: float = 3600.0
    rotate_every: float = 0.0
    store_lag: float = 1.0  # from the database's change to the store's
    outage: tuple[float, float] | None = None  # when the store is down for the fleet, from and to
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

    def peak(self, since: float = 0.0) -> int:
        return max(self.series[int(since) :], default=0)


class Instance:
    """One process of the service: a pool of connections, and the machines that look after its credentials."""

    __slots__ = ("alternator", "due", "plan", "quarantine", "replacing", "stale_since", "turn", "waits")

    def __init__(self, plan: RefreshPlan, quarantine: Quarantine) -> None:
        self.plan = plan
        self.quarantine = quarantine
        self.alternator: Alternator | None = None
        self.stale_since: float | None = None  # since when none of its passwords is in force
        self.due = 0  # connections to be replaced
        self.replacing = False
        self.waits = False  # the replacement waits for newer credentials
        self.turn = 0  # so that what was scheduled for a replacement that has ended does nothing


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
        self.stored = self.in_force
        self._tokens, self._filled = STORE_LIMIT, 0.0
        seconds = int(fleet.duration)
        self.calls, self.throttled, self.unanswered = Counts(seconds), Counts(seconds), Counts(seconds)
        self.connects, self.failed_logins = Counts(seconds), Counts(seconds)
        self.started = 0  # instances that have their connections
        self.all_started: float | None = None
        self.worst_stale = 0.0
        self.waited = 0  # times that a replacement had to wait, with no account that works
        self.instances = [self._instance() for _ in range(fleet.instances)]

    def run(self) -> Simulation:
        fleet = self.fleet
        for instance in self.instances:
            self._at(self._uniform(0.0, fleet.start_within), self._fetch, instance)
        for number, when in enumerate(fleet.rotations):
            self._at(when, self._rotate, Parity.ODD if number % 2 == 0 else Parity.EVEN)
        events = self._events
        while events and events[0][0] < fleet.duration:
            self.now, _, act, arguments = heapq.heappop(events)
            act(*arguments)
        self.now = fleet.duration
        for instance in self.instances:
            self._judge(instance)
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

    def _rotate(self, parity: Parity) -> None:
        changes: dict[str, Any] = {str(parity): self._new(parity)}
        self.in_force = replace(self.in_force, **changes)
        self._at(self.now + self.fleet.store_lag, self._store, self.in_force)
        for instance in self.instances:
            self._judge(instance)

    def _store(self, pair: CredentialPair) -> None:
        self.stored = pair

    def _answer(self) -> CredentialPair | None:
        """What the store says to a call made now; None if it does not."""
        self.calls.add(self.now)
        outage = self.fleet.outage
        if outage and outage[0] <= self.now < outage[1]:
            self.unanswered.add(self.now)
            return None
        self._tokens = min(STORE_LIMIT, self._tokens + (self.now - self._filled) * STORE_LIMIT)
        self._filled = self.now
        if self._tokens < 1:
            self.throttled.add(self.now)
            return None
        self._tokens -= 1
        return self.stored

    def _logs_in(self, attempt: Attempt) -> bool:
        self.connects.add(self.now)
        if self.in_force[attempt.parity] == attempt.credential:
            return True
        self.failed_logins.add(self.now)
        return False

    # An instance's refresher.

    def _fetch(self, instance: Instance) -> None:
        """What its refresher's task does when it wakes."""
        plan = instance.plan
        ticket = plan.start(self.now)
        if ticket is not None:
            self._at(self.now + STORE_LATENCY, self._landed, instance, ticket, self._answer())

    def _plan_fetch(self, instance: Instance) -> None:
        # An event for a due time that has been moved finds nothing to do.
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
        if instance.alternator is None:
            instance.alternator = Alternator(pair, instance.quarantine)
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
        if alternator.is_refused():
            return Need.STARVED
        pair = alternator.pair
        return Need.REFUSED if any(one in instance.quarantine for one in pair.credentials()) else Need.NONE

    def _judge(self, instance: Instance) -> None:
        """Keep how long it has held a pair of which nothing is in force."""
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
        """A pool's first connections, all at once: each begins before any has been answered."""
        alternator = instance.alternator
        assert alternator is not None
        for step in [alternator.begin(self.now) for _ in range(self.fleet.connections)]:
            if not (isinstance(step, Attempt) and self._try_both(instance, step)):
                instance.due += 1
        self._replace(instance)

    def _expire(self, instance: Instance) -> None:
        """A connection's lifetime is over. It serves on until another is there, and one is opened at a time."""
        instance.due += 1
        self._replace(instance)

    def _replace(self, instance: Instance) -> None:
        alternator = instance.alternator
        assert alternator is not None
        if instance.replacing or not instance.due:
            return
        instance.replacing = True
        step = alternator.begin(self.now)
        while isinstance(step, Attempt) and not self._try_both(instance, step):
            step = alternator.begin(self.now)
        instance.turn += 1
        if isinstance(step, Attempt):
            instance.due -= 1
            if instance.due:
                self._at(self.now + LOGIN, self._go_on, instance, instance.turn)
            else:
                instance.replacing = False
        else:
            instance.waits = True
            self.waited += 1
            self._ask(instance)
            self._at(step.until, self._go_on, instance, instance.turn)

    def _go_on(self, instance: Instance, turn: int) -> None:
        """The login before is made, or a probe is due, or newer credentials came: whichever is first."""
        if turn == instance.turn:
            instance.replacing = instance.waits = False
            self._replace(instance)

    def _try_both(self, instance: Instance, attempt: Attempt) -> bool:
        alternator = instance.alternator
        assert alternator is not None
        if not alternator.is_refused() and (probe := alternator.probe(self.now)):
            self._try(instance, probe, keep=False)
        if self._try(instance, attempt):
            return True
        second = alternator.fallback(attempt, self.now)
        return second is not None and self._try(instance, second)

    def _try(self, instance: Instance, attempt: Attempt, *, keep: bool = True) -> bool:
        alternator = instance.alternator
        assert alternator is not None
        if self._logs_in(attempt):
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
        need = Need.STARVED if instance.alternator.is_refused() else Need.REFUSED
        before = instance.plan.due
        instance.plan.request(need, self.now)
        if instance.plan.due < before:
            self._plan_fetch(instance)


def simulate(fleet: Fleet) -> dict[str, Any]:
    """Run a fleet, and say what it asked of the store and of the server. Rates are per second."""
    run = Simulation(fleet).run()
    # "Steady" leaves out the start: what follows it is the fleet's ordinary life.
    steady = min((run.all_started or fleet.duration) + 2.0, fleet.duration)
    span = max(fleet.duration - steady, 1.0)
    return {
        "instances": fleet.instances,
        "lifetime": fleet.lifetime,
        "interval": fleet.interval,
        "duration": fleet.duration,
        "rotations": len(fleet.rotations),
        "outage": fleet.outage,
        "all_started": run.all_started,
        "calls_mean": run.calls.total(steady) / span,
        "calls_peak": run.calls.peak(steady),
        "calls_peak_start": run.calls.peak(),
        "throttled": run.throttled.total(),
        "unanswered": run.unanswered.total(),
        "connects_mean": run.connects.total(steady) / span,
        "connects_peak": run.connects.peak(steady),
        "connects_peak_start": run.connects.peak(),
        "failed_logins": run.failed_logins.total(),
        "failed_peak": run.failed_logins.peak(),
        "worst_stale": run.worst_stale,
        "waited": run.waited,
        "series": {
            "calls": list(run.calls.series[:-1]),
            "connects": list(run.connects.series[:-1]),
            "failed": list(run.failed_logins.series[:-1]),
        },
    }
