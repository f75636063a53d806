"""Simulates a fleet whose passwords are tokens, and counts the requests to the endpoint that issues them.

Each instance has aiopqr's own refresh plan, in virtual time. (RDS IAM tokens are signed locally, without a request.
Entra ID, Google Cloud and your own identity endpoints are asked once for each token.)
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from aiopqr._refresh.plan import Need, RefreshPlan

LATENCY = 0.05


@dataclass(frozen=True, slots=True)
class TokenFleet:
    """What is simulated. Times are in seconds. Between the two times of ``outage``, the endpoint does not answer."""

    instances: int
    good_for: float = 900.0
    duration: float = 3600.0
    start_within: float = 1.0
    outage: tuple[float, float] | None = None
    seed: int = 1


def simulate(fleet: TokenFleet) -> dict[str, Any]:
    """Run a fleet, and return what it asked of the endpoint, and how long an instance had no valid token."""
    uniform = random.Random(fleet.seed).uniform
    expires = [math.inf] * fleet.instances
    plans, events, asked, longest = [], [], Counter[int](), 0.0
    for number in range(fleet.instances):
        begun = uniform(0.0, fleet.start_within)
        plans.append(RefreshPlan(0.0, begun, uniform=uniform))
        events.append((begun, number))
    heapq.heapify(events)
    while events and events[0][0] < fleet.duration:
        now, number = heapq.heappop(events)
        plan = plans[number]
        ticket = plan.start(now)
        assert ticket is not None
        asked[int(now)] += 1
        landed = now + LATENCY
        if fleet.outage and fleet.outage[0] <= now < fleet.outage[1]:
            plan.failed(ticket, Need.STARVED if landed >= expires[number] else Need.NONE, landed)
        else:
            longest = max(longest, landed - expires[number])
            expires[number] = landed + fleet.good_for
            plan.succeeded(ticket, Need.NONE, landed, remaining=fleet.good_for)
        heapq.heappush(events, (plan.due, number))
    steady = Counter({second: count for second, count in asked.items() if second > fleet.start_within + 1})
    return {
        "instances": fleet.instances,
        "good_for": fleet.good_for,
        "outage": fleet.outage,
        "asked": asked.total(),
        "asked_mean": steady.total() / fleet.duration,
        "asked_peak": max(steady.values(), default=0),
        "asked_peak_start": max(asked.values(), default=0),
        "longest_without": max(longest, 0.0),
    }
