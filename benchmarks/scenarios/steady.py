"""Steady: acquire and release, alone and with a query, near the server and at a distance: speed, CPU, fairness."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from ..distance import at_distance
from ..measure import Judged, Spread, Target, interleave, p999, percentile, ratios
from ..stage import Stage, stage
from ..workers import RemoteWorker, latencies
from .plan import Plan, Progress, Steps

REFERENCE, CONTROL = "asyncpg", "asyncpg again"
FULL, DEFERRED, TRANSACTION = "aiopqr", "aiopqr, deferred reset", "aiopqr, transaction reset"
PSYCOPG, ALCHEMY = "psycopg_pool", "SQLAlchemy"
AUTOCOMMIT = (f"{PSYCOPG}, autocommit", f"{ALCHEMY}, autocommit")  # which send the server the same as TRANSACTION
BARE = "bare connections"
LEAST = "aiopqr, least reset"  # transaction reset, and the reset's query on other sockets: the least that a reset costs
PEERS = {
    REFERENCE: REFERENCE,
    CONTROL: REFERENCE,
    FULL: FULL,
    DEFERRED: DEFERRED,
    TRANSACTION: TRANSACTION,
    PSYCOPG: PSYCOPG,
    ALCHEMY: ALCHEMY,
    **{name: name for name in AUTOCOMMIT},
    BARE: BARE,
}
ROUND_TRIPS = 60  # in one run, at least: the first few after a pause include a check of idle connections


class Point(NamedTuple):
    """``tasks`` tasks on a pool of ``size``, with a server that is ``delay`` seconds away in each direction."""

    operation: str
    tasks: int
    loop: str
    size: int = 10
    delay: float = 0.0


MAIN = Point("select", 10, "asyncio")
UVLOOP = Point("select", 10, "uvloop")
CROWD = Point("select", 100, "asyncio")
ALONE = Point("select", 1, "asyncio")  # always has a connection to spare, as most pools do
SPARE = Point("select", 10, "asyncio", size=40)
NEAR = Point("select", 1, "asyncio", delay=0.0005)
FAR = Point("select", 1, "asyncio", delay=0.005)
JUDGED = (MAIN, UVLOOP, CROWD, ALONE, SPARE, NEAR, FAR)
WITH_LEAST = (ALONE, SPARE)
WITH_TAILS = (MAIN, CROWD)


def points_of(plan: Plan) -> list[Point]:
    if plan.quick:
        return [Point("hold", 10, "asyncio"), MAIN, CROWD, ALONE, NEAR]
    points = [
        *(Point(operation, tasks, "asyncio") for operation in ("hold", "select", "rows") for tasks in (1, 10)),
        *(CROWD, SPARE, NEAR, FAR),
    ]
    if plan.uvloop:
        points += [Point(operation, tasks, "uvloop") for operation in ("hold", "select") for tasks in (1, 10)]
        points += [SPARE._replace(loop="uvloop"), NEAR._replace(loop="uvloop")]
    return points


async def measure(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Every point of the scenario, and the targets judged."""
    async with stage(max_connections=500) as place:
        results = [await _point(place, point, plan, progress) for point in points_of(plan)]
    return {"points": results, "targets": judge(results)}


async def _point(place: Stage, point: Point, plan: Plan, progress: Progress) -> dict[str, Any]:
    # Two processes of the same peer may differ by a few percent all their lives, so a verdict needs several. At a
    # distance, nearly all the time is spent waiting, which is the same for all of them.
    generations = plan.generations if point in JUDGED and not point.delay else 1
    samples = math.ceil(plan.tail / generations) if point in WITH_TAILS or plan.every_tail else 0
    what = f"steady: {point.operation}, {point.tasks} tasks on {point.size}, {point.loop}"
    what += f", {point.delay * 1000:g} ms away" if point.delay else ""
    peers = PEERS | ({LEAST: LEAST} if point in WITH_LEAST else {})
    steps = Steps(progress, what, generations * plan.pairs * len(peers))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    shares: dict[str, list[float]] = {name: [] for name in peers}
    for generation in range(generations):
        async with AsyncExitStack() as stack:
            where = await stack.enter_async_context(at_distance(place.where, point.delay))
            workers = {name: await stack.enter_async_context(RemoteWorker(point.loop, name)) for name in peers}
            opening = {"where": where.as_message(), "size": point.size}
            await asyncio.gather(*(workers[name].ask("open", peer=peer, **opening) for name, peer in peers.items()))
            slots = {name: await _slot(worker, point, plan, samples) for name, worker in workers.items()}
            more = await interleave(slots, plan.pairs, steps.advance, seed=generation)
            while any(sum(run["operations"] for run in own) < samples for own in more.values()):
                for name, own in (await interleave(slots, 1, seed=len(more[CONTROL]))).items():
                    more[name] += own
            for name, own in more.items():
                runs[name] += own
            if point.tasks > point.size and point.operation != "hold":
                for name, worker in workers.items():  # in one long run: in a short one, a task has only a turn or two
                    long = await worker.ask("run", operation=point.operation, tasks=point.tasks, seconds=plan.fair_slot)
                    shares[name].append(min(long["per_task"]) / max(long["per_task"]))
    return {**point._asdict(), "peers": summarize(runs, shares)}


async def _slot(
    worker: RemoteWorker, point: Point, plan: Plan, samples: int
) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Warm up a peer, and return a function that runs it, long enough for all rounds to yield ``samples``."""

    def run(seconds: float) -> Awaitable[dict[str, Any]]:
        return worker.ask("run", operation=point.operation, tasks=point.tasks, seconds=seconds)

    least = max(plan.steady_slot, ROUND_TRIPS * 2 * point.delay)
    await run(least)  # opens what has to be opened, and fills the caches
    trial = await run(least)
    rate = trial["operations"] / trial["seconds"]
    seconds = max(least, 1.25 * samples / plan.pairs / rate)
    return lambda: run(seconds)


def summarize(runs: dict[str, list[dict[str, Any]]], shares: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """For each peer: its rate, its CPU, its latencies in milliseconds, its fairness, and its ratios, round by round."""
    rates = {name: [run["operations"] / run["seconds"] for run in own] for name, own in runs.items()}
    cpus = {name: [run["cpu"] / run["operations"] for run in own] for name, own in runs.items()}
    summary = {}
    for name, own in runs.items():
        waits = latencies(*own)
        summary[name] = {
            "rates": rates[name],
            "rate": Spread.of(rates[name]),
            "cpu": Spread.of(cpus[name]),
            "rate_ratio": ratios(rates[name], rates[REFERENCE]),
            "cpu_ratio": ratios(cpus[name], cpus[REFERENCE]),
            "samples": len(waits),
            "p50": percentile(waits, 0.5),
            "p99": percentile(waits, 0.99),
            "p999": p999(waits),
            "fairness": statistics.median(shares[name]) if shares[name] else None,
        }
    return summary


# A point, our peer, another peer, and the lowest ratio of their rates that is a hit.
TARGETS: tuple[tuple[Point, str, str, float], ...] = (
    *((point, FULL, REFERENCE, 1.05) for point in (MAIN, UVLOOP)),
    *((point, DEFERRED, REFERENCE, 1.15) for point in (MAIN, UVLOOP)),
    (MAIN, TRANSACTION, AUTOCOMMIT[0], 1.15),
    (MAIN, TRANSACTION, BARE, 0.85),
    (ALONE, DEFERRED, REFERENCE, 1.85),
    (ALONE, DEFERRED, TRANSACTION, 0.92),
    (SPARE, DEFERRED, REFERENCE, 1.3),
    (SPARE, DEFERRED, TRANSACTION, 0.7),
    *(
        (point, ours, theirs, limit)
        for point in (NEAR, FAR)
        for ours, theirs, limit in (
            (FULL, REFERENCE, 0.99),
            (DEFERRED, REFERENCE, 1.9),
            (DEFERRED, PSYCOPG, 1.0),
            (DEFERRED, ALCHEMY, 1.0),
        )
    ),
)


def judge(points: list[dict[str, Any]]) -> list[Judged]:
    """The targets that were measured, and fairness among 100 tasks on 10 connections."""
    found = {Point(*(point[name] for name in Point._fields)): point["peers"] for point in points}
    judged = []
    for point, ours, theirs, limit in TARGETS:
        if peers := found.get(point):
            ratio = ratios(peers[ours]["rates"], peers[theirs]["rates"]).median
            noise = peers[CONTROL]["rate_ratio"].noise
            judged.append(Judged(Target(f"steady, {titled(point)}: {ours}, relative to {theirs}", limit), ratio, noise))
    name = f"steady, {titled(CROWD)}: slowest task relative to the fastest"
    return [*judged, Judged(Target(name, 0.5), found[CROWD][FULL]["fairness"], 0.0)]


OPERATIONS = {"hold": "acquire and release alone", "select": "`SELECT 1`", "rows": "ten rows"}


def titled(point: Point) -> str:
    """A point in words."""
    tasks = f"{point.tasks} task{'s' if point.tasks > 1 else ''} on {point.size} connections"
    away = f", round trip {2 * point.delay * 1000:g} ms" if point.delay else ""
    return f"{OPERATIONS[point.operation]}, {tasks}, {point.loop}{away}"
