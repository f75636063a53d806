"""The simulated fleet: sizes, rotations, outages and starts, and which lifetime and interval suit which size.

A day of the largest fleet takes too long. So each size runs for an hour that includes a common start, the wave in
which all connections are replaced, and rotations at the worst moment. A small fleet also runs for a day, to show that
the hour leaves nothing out.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from ..fleet import Fleet, simulate
from ..token_fleet import TokenFleet
from ..token_fleet import simulate as simulate_tokens
from .plan import Plan, Progress, Steps

SIZES = (10, 100, 1_000, 10_000)
OUTAGE = (900.0, 2100.0)  # includes the worst moment for a rotation
SWEEP_SIZE = 100
LIFETIMES = (600.0, 1800.0, 7200.0)
INTERVALS = (10.0, 60.0, 300.0, 900.0)
DAY = 86_400.0
SCENES: dict[str, dict[str, Any]] = {
    "one rotation": {},
    "a rotation every 10 minutes": {"rotate_every": 600.0},
    "one rotation, the store down for 20 minutes": {"outage": OUTAGE},
    "a rotation every 10 minutes, the store down for 20 minutes": {"rotate_every": 600.0, "outage": OUTAGE},
    "one rotation, started within ten minutes": {"start_within": 600.0},
    "one rotation, announced 70 s ahead": {"announce": 70.0},
    "a rotation every 10 minutes, each announced 70 s ahead": {"rotate_every": 600.0, "announce": 70.0},
}

TOKEN_SCENES: dict[str, dict[str, Any]] = {
    "tokens of 15 minutes": {},
    "tokens of 15 minutes, started within ten minutes": {"start_within": 600.0},
    "tokens of 15 minutes, no answer for 20 minutes": {"outage": (1800.0, 3000.0)},
}


def fleets(plan: Plan) -> dict[str, dict[str, Fleet]]:
    """The fleets to run, by section and name."""
    sizes = SIZES[:2] if plan.quick else SIZES
    scenes = {f"{size}: {scene}": Fleet(size, **more) for scene, more in SCENES.items() for size in sizes}
    days = {
        f"{size}: {scene}": Fleet(size, duration=DAY, **SCENES[scene])
        for scene in ([] if plan.quick else list(SCENES)[:2])
        for size in (10, 100)
    }
    sweep = {
        f"{lifetime:g} {interval:g}": Fleet(
            max(SWEEP_SIZE // 10, 4) if plan.quick else SWEEP_SIZE,
            lifetime=lifetime,
            interval=interval,
            duration=max(2 * lifetime, 3600.0),
            seed=7,
        )
        for lifetime in LIFETIMES
        for interval in INTERVALS
    }
    jitter = {
        f"{share:g}": Fleet(SWEEP_SIZE if plan.quick else 1000, jitter=1800.0 * share, duration=5400.0, seed=7)
        for share in (0.1, 0.25, 0.5, 1.0)
    }
    return {"scenes": scenes, "days": days, "sweep": sweep, "jitter": jitter}


async def measure(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run every fleet of every section, the largest first, on all processors."""
    wanted = fleets(plan)
    jobs = [(section, name, fleet) for section, named in wanted.items() for name, fleet in named.items()]
    jobs.sort(key=lambda job: -job[2].instances * job[2].duration)
    steps = Steps(progress, "fleet, simulated", len(jobs))
    loop = asyncio.get_running_loop()
    found: dict[str, dict[str, Any]] = {section: {} for section in wanted}

    async def one(section: str, name: str, fleet: Fleet) -> None:
        found[section][name] = await loop.run_in_executor(processes, simulate, fleet)
        steps.advance()

    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        await asyncio.gather(*(one(*job) for job in jobs))
    largest = max(run["instances"] for run in found["scenes"].values())
    for run in (run for named in found.values() for run in named.values()):
        if run["instances"] < largest or run not in found["scenes"].values():
            del run["series"]  # the picture shows only the largest
    ordered = {section: {name: found[section][name] for name in named} for section, named in wanted.items()}
    ordered["tokens"] = {
        f"{size}: {scene}": simulate_tokens(TokenFleet(size, **more))
        for scene, more in TOKEN_SCENES.items()
        for size in (SIZES[:2] if plan.quick else SIZES)
    }
    return {**ordered, "targets": []}
