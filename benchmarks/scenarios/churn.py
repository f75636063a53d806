"""Churn: connect, ``SELECT 1``, close. Connections per second, client CPU for each, and stalls of the event loop."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from ..measure import Judged, Spread, Target, interleave, ratios
from ..peers import Where
from ..stage import Stage, stage
from ..workers import RemoteWorker
from .plan import Plan, Progress, Steps

REFERENCE, CONTROL = "asyncpg.connect", "asyncpg.connect again"
OURS, PSYCOPG, PGBENCH, TRUST = "aiopqr Connector", "psycopg 3", "pgbench -C", "asyncpg.connect, trust"
PEERS = {REFERENCE: REFERENCE, CONTROL: REFERENCE, OURS: OURS, PSYCOPG: PSYCOPG, PGBENCH: PGBENCH, TRUST: REFERENCE}
ITERATIONS = "SCRAM, 65,536 iterations"
LEFT_OUT = {
    ("SCRAM, TLS", "asyncio"): (TRUST,),
    (ITERATIONS, "asyncio"): (PGBENCH, TRUST),
    ("SCRAM", "uvloop"): (PGBENCH, TRUST),
}
MAIN = (8, "SCRAM", "asyncio")


async def measure(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Every point of the scenario, and the targets judged."""
    points = [(tasks, "SCRAM", "asyncio") for tasks in ((8,) if plan.quick else (1, 8, 32))]
    points.append((8, ITERATIONS, "asyncio"))
    if plan.uvloop and not plan.quick:
        points.append((8, "SCRAM", "uvloop"))
    tls = [(tasks, "SCRAM, TLS", "asyncio") for tasks in (1, 8, 32)] if plan.tls else []
    results = []
    for secure, chosen in ((False, points), (True, tls)):
        if chosen:
            async with stage(tls=secure) as place:
                slow = await place.slow_accounts()
                for tasks, how, loop in chosen:
                    where = slow if how == ITERATIONS else place.where
                    results.append(await _point(place, where, tasks, how, loop, plan, progress))
    return {"points": results, "targets": judge(results)}


async def _point(
    place: Stage, where: Where, tasks: int, how: str, loop: str, plan: Plan, progress: Progress
) -> dict[str, Any]:
    peers = {name: peer for name, peer in PEERS.items() if name not in LEFT_OUT.get((how, loop), ())}
    ticking_rounds = max(plan.pairs // 5, 3)
    seconds = plan.slot if (tasks, how, loop) == MAIN or how == ITERATIONS else plan.brief_slot
    rounds = plan.pairs * len(peers) + ticking_rounds * (len(peers) - (PGBENCH in peers))
    steps = Steps(progress, f"churn: {tasks} at a time, {how}, {loop}", rounds)
    async with AsyncExitStack() as stack:
        slots, ticking = {}, {}
        for name, peer in peers.items():
            worker = await stack.enter_async_context(RemoteWorker(loop, name))
            spot = place.trusted if name == TRUST else where
            more = {"binaries": str(place.server.binaries.bindir)}
            await worker.ask("open", peer=peer, where=spot.as_message(), more=more)
            await worker.ask("run", operation="churn", tasks=tasks, seconds=seconds / 3)  # warms up
            slots[name] = _slot(place, worker, tasks, seconds)
            if name != PGBENCH:
                ticking[name] = _ticking_slot(worker, tasks, seconds)
        runs = await interleave(slots, plan.pairs, steps.advance)
        # Measured separately, since a ticker's CPU is not negligible compared with a connection's.
        stalls = await interleave(ticking, ticking_rounds, steps.advance)
    return {"tasks": tasks, "how": how, "loop": loop, "peers": summarize(runs, stalls)}


def _slot(place: Stage, worker: RemoteWorker, tasks: int, seconds: float) -> Any:
    async def run() -> dict[str, Any]:
        before = place.server_cpu()
        figures: dict[str, Any] = await worker.ask("run", operation="churn", tasks=tasks, seconds=seconds)
        return {**figures, "server_cpu": place.server_cpu() - before}

    return run


def _ticking_slot(worker: RemoteWorker, tasks: int, seconds: float) -> Any:
    async def run() -> dict[str, Any]:
        await worker.ask("reopen")  # so that this run has to derive keys that are cached otherwise
        figures: dict[str, Any] = await worker.ask("run", operation="churn", tasks=tasks, seconds=seconds, ticking=True)
        return figures

    return run


def summarize(
    runs: dict[str, list[dict[str, Any]]], stalls: dict[str, list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """For each peer: its rate, its CPU, its stalls, and its ratios to the reference, round by round."""
    rates = {name: [run["operations"] / run["seconds"] for run in own] for name, own in runs.items()}
    cpus = {name: [run["cpu"] / run["operations"] for run in own] for name, own in runs.items()}
    return {
        name: {
            "rates": rates[name],
            "rate": Spread.of(rates[name]),
            "cpu": Spread.of(cpus[name]),
            "server_cpu": Spread.of(run["server_cpu"] / run["operations"] for run in runs[name]),
            "stall": Spread.of(run["stall"] for run in stalls[name]) if name in stalls else None,
            "rate_ratio": ratios(rates[name], rates[REFERENCE]),
            "cpu_ratio": ratios(cpus[name], cpus[REFERENCE]),
        }
        for name in runs
    }


def judge(points: list[dict[str, Any]]) -> list[Judged]:
    """The targets, at 8 connections at a time without TLS."""
    found = {(p["tasks"], p["how"], p["loop"]): p["peers"] for p in points}
    peers = found[MAIN]
    rate_noise, cpu_noise = peers[CONTROL]["rate_ratio"].noise, peers[CONTROL]["cpu_ratio"].noise
    ours, psycopg = peers[OURS], peers[PSYCOPG]
    slow = next(point["peers"] for point in points if point["how"] == ITERATIONS)
    growth = {name: slow[name]["stall"].median - peers[name]["stall"].median for name in (REFERENCE, CONTROL, OURS)}
    growth[REFERENCE] = max(growth[REFERENCE], 1e-6)
    stall = Target(
        "churn, 8 at a time: growth of the stall with 16 x SCRAM iterations, relative to asyncpg", 0.15, at_most=True
    )
    return [
        Judged(
            Target("churn, 8 at a time: connections/s relative to asyncpg.connect", 1.4),
            ours["rate_ratio"].median,
            rate_noise,
        ),
        Judged(
            Target("churn, 8 at a time: connections/s relative to psycopg 3", 2.0),
            ratios(ours["rates"], psycopg["rates"]).median,
            rate_noise,
        ),
        Judged(
            Target("churn, 8 at a time: client CPU per connection relative to asyncpg.connect", 0.45, at_most=True),
            ours["cpu_ratio"].median,
            cpu_noise,
        ),
        Judged(stall, max(growth[OURS], 0.0) / growth[REFERENCE], abs(growth[CONTROL] / growth[REFERENCE] - 1)),
    ]
