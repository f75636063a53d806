"""Steady: acquire and release, alone and with a query. Throughput, client CPU, latency, fairness."""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from typing import Any

from ..measure import TAIL_SAMPLES, Judged, Spread, Target, interleave, p999, percentile, ratios
from ..stage import Stage, stage
from ..workers import RemoteWorker, latencies
from .plan import Plan, Progress, Steps

REFERENCE, CONTROL = "asyncpg", "asyncpg again"
FULL, TRANSACTION, PSYCOPG, ALCHEMY = "aiopqr", "aiopqr, transaction reset", "psycopg_pool", "SQLAlchemy"
PEERS = {
    REFERENCE: REFERENCE,
    CONTROL: REFERENCE,
    FULL: FULL,
    TRANSACTION: TRANSACTION,
    PSYCOPG: PSYCOPG,
    ALCHEMY: ALCHEMY,
    "bare connections": "bare connections",
}
SIZE = 10
MAIN = ("select", 10, "asyncio")
CROWD = ("select", 100, "asyncio")


async def measure(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Every point of the scenario, and the targets judged."""
    operations = ("hold", "select") if plan.quick else ("hold", "select", "rows")
    crowds = (10, 100) if plan.quick else (1, 10, 100)
    loops = ("asyncio", "uvloop") if plan.uvloop and not plan.quick else ("asyncio",)
    points = [(operation, tasks, loop) for loop in loops for operation in operations for tasks in crowds]
    results = []
    async with stage(max_connections=250) as place:
        for loop in loops:
            async with AsyncExitStack() as stack:
                workers = {}
                for name, peer in PEERS.items():
                    worker = workers[name] = await stack.enter_async_context(RemoteWorker(loop, name))
                    await worker.ask("open", peer=peer, where=place.where.as_message(), size=SIZE)
                for point in (point for point in points if point[2] == loop):
                    results += [await _point(place, workers, point, plan, progress)]
    return {"points": results, "targets": judge(results)}


async def _point(
    place: Stage, workers: dict[str, RemoteWorker], point: tuple[str, int, str], plan: Plan, progress: Progress
) -> dict[str, Any]:
    operation, tasks, loop = point
    steps = Steps(progress, f"steady: {operation}, {tasks} tasks, {loop}", plan.pairs * len(workers))

    def slot(worker: RemoteWorker, seconds: float) -> Any:
        return lambda: worker.ask("run", operation=operation, tasks=tasks, seconds=seconds)

    for worker in workers.values():
        await slot(worker, plan.steady_slot)()  # opens what has to be opened, and fills the caches
    seconds = dict.fromkeys(workers, plan.steady_slot)
    if plan.tail and (plan.every_tail or point in (MAIN, CROWD)):
        for name, worker in workers.items():  # slots long enough for the samples that a tail takes
            trial = await slot(worker, plan.steady_slot)()
            rate = trial["operations"] / trial["seconds"]
            seconds[name] = max(plan.steady_slot, 1.25 * plan.tail / plan.pairs / rate)
    runs = await interleave({n: slot(w, seconds[n]) for n, w in workers.items()}, plan.pairs, steps.advance)
    while plan.tail and (plan.every_tail or point in (MAIN, CROWD)):
        short = [n for n, own in runs.items() if sum(run["operations"] for run in own) < TAIL_SAMPLES]
        if not short:
            break
        more = await interleave({n: slot(w, seconds[n]) for n, w in workers.items()}, 1)
        for name, own in more.items():
            runs[name] += own
    return {"operation": operation, "tasks": tasks, "loop": loop, "peers": summarize(runs)}


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
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
            "fairness": statistics.median(min(run["per_task"]) / max(run["per_task"]) for run in own),
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
