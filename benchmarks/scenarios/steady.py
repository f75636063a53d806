"""Steady: acquire and release, alone and with a query. Throughput, client CPU, latency, fairness."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from ..measure import Judged, Spread, Target, interleave, p999, percentile, ratios
from ..stage import Stage, stage
from ..workers import RemoteWorker, latencies
from .plan import Plan, Progress, Steps

REFERENCE, CONTROL = "asyncpg", "asyncpg again"
FULL, DEFERRED, TRANSACTION = "aiopqr", "aiopqr, deferred reset", "aiopqr, transaction reset"
PSYCOPG, ALCHEMY = "psycopg_pool", "SQLAlchemy"
AUTOCOMMIT = (f"{PSYCOPG}, autocommit", f"{ALCHEMY}, autocommit")  # these send the server what that reset sends
PEERS = {
    REFERENCE: REFERENCE,
    CONTROL: REFERENCE,
    FULL: FULL,
    DEFERRED: DEFERRED,
    TRANSACTION: TRANSACTION,
    PSYCOPG: PSYCOPG,
    ALCHEMY: ALCHEMY,
    **{name: name for name in AUTOCOMMIT},
    "bare connections": "bare connections",
}
SIZE = 10
OPERATIONS = ("hold", "select", "rows")
MAIN = ("select", 10, "asyncio")
CROWD = ("select", 100, "asyncio")


async def measure(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Every point of the scenario, and the targets judged."""
    loops = ("asyncio", "uvloop") if plan.uvloop else ("asyncio",)
    points = [(operation, tasks, loop) for loop in loops for operation in OPERATIONS for tasks in (1, 10, 100)]
    if plan.quick:
        points = [("hold", 10, "asyncio"), MAIN, CROWD]
    async with stage(max_connections=250) as place:
        results = [await _point(place, *point, plan, progress) for point in points]
    return {"points": results, "targets": judge(results)}


async def _point(place: Stage, operation: str, tasks: int, loop: str, plan: Plan, progress: Progress) -> dict[str, Any]:
    is_judged = (operation, tasks, loop) in (MAIN, CROWD)
    # Two processes of the same peer may differ by some percent as long as they live, so a verdict takes several.
    generations = plan.generations if is_judged else 1
    samples = math.ceil(plan.tail / generations) if is_judged or plan.every_tail else 0
    steps = Steps(progress, f"steady: {operation}, {tasks} tasks, {loop}", generations * plan.pairs * len(PEERS))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PEERS}
    shares: dict[str, list[float]] = {name: [] for name in PEERS}
    for generation in range(generations):
        async with AsyncExitStack() as stack:
            workers = {name: await stack.enter_async_context(RemoteWorker(loop, name)) for name in PEERS}
            opening = {"where": place.where.as_message(), "size": SIZE}
            await asyncio.gather(*(workers[name].ask("open", peer=peer, **opening) for name, peer in PEERS.items()))
            slots = {n: await _slot(worker, operation, tasks, plan, samples) for n, worker in workers.items()}
            more = await interleave(slots, plan.pairs, steps.advance, seed=generation)
            while any(sum(run["operations"] for run in own) < samples for own in more.values()):
                for name, own in (await interleave(slots, 1, seed=len(more[CONTROL]))).items():
                    more[name] += own
            for name, own in more.items():
                runs[name] += own
            if tasks > SIZE and operation != "hold":
                for name, worker in workers.items():  # in one long run: in a short one each task has a turn or two
                    long = await worker.ask("run", operation=operation, tasks=tasks, seconds=plan.fair_slot)
                    shares[name].append(min(long["per_task"]) / max(long["per_task"]))
    return {"operation": operation, "tasks": tasks, "loop": loop, "peers": summarize(runs, shares)}


async def _slot(
    worker: RemoteWorker, operation: str, tasks: int, plan: Plan, samples: int
) -> Callable[[], Awaitable[dict[str, Any]]]:
    """One run of a peer that is warm, long enough for all of them together to come to so many samples."""

    def run(seconds: float) -> Awaitable[dict[str, Any]]:
        return worker.ask("run", operation=operation, tasks=tasks, seconds=seconds)

    await run(plan.steady_slot)  # opens what has to be opened, and fills the caches
    trial = await run(plan.steady_slot)
    rate = trial["operations"] / trial["seconds"]
    seconds = max(plan.steady_slot, 1.25 * samples / plan.pairs / rate)
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


def judge(points: list[dict[str, Any]]) -> list[Judged]:
    """The targets: ``SELECT 1`` from 10 tasks, and fairness among 100 tasks on 10 connections."""
    found = {(p["operation"], p["tasks"], p["loop"]): p["peers"] for p in points}
    peers = found[MAIN]
    noise = peers[CONTROL]["rate_ratio"].noise

    def over(ours: str, theirs: str) -> float:
        return ratios(peers[ours]["rates"], peers[theirs]["rates"]).median

    name = "steady, SELECT 1, 10 tasks: operations/s"
    return [
        Judged(Target(f"{name}, full reset, over asyncpg.create_pool", 0.97), over(FULL, REFERENCE), noise),
        Judged(Target(f"{name}, transaction reset, over psycopg_pool", 1.2), over(TRANSACTION, PSYCOPG), noise),
        Judged(Target(f"{name}, transaction reset, over SQLAlchemy", 2.0), over(TRANSACTION, ALCHEMY), noise),
        Judged(
            Target("steady, SELECT 1, 100 tasks on 10 connections: slowest task over fastest", 0.5),
            found[CROWD][FULL]["fairness"],
            0.0,
        ),
    ]
