"""Rotation: what an application notices while passwords change, phase by phase, under the same load for every peer.

The load is 20 tasks on 10 connections, each in a loop of acquire, ``SELECT 1``, release and a pause of 1 ms;
connections live for 3 seconds, and the store takes 200 ms to answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..measure import Judged, Target, percentile
from ..peers import Where
from ..stage import Stage, stage
from ..workers import RemoteWorker, latencies
from .plan import Plan, Progress, Steps

OURS, NO_LIFETIME, CONTROL = "aiopqr", "aiopqr, no lifetime", "aiopqr, no lifetime again"
CALLABLE, ALTERNATING = "asyncpg, password callable", "asyncpg, alternating connect"
PEERS = (OURS, NO_LIFETIME, CONTROL, CALLABLE, ALTERNATING, "psycopg_pool", "SQLAlchemy")
SIZE, TASKS, LIFETIME, STORE_LATENCY = 10, 20, 3.0, 0.2
CALM = 5  # the first five phases, in which nobody may notice anything
SLOWEST = 50.0  # ms: no acquire may take longer in those


class Scene:
    """One peer under load, and the passwords and the store that change in the meantime."""

    def __init__(self, place: Stage, worker: RemoteWorker) -> None:
        self._place = place
        self._worker = worker
        self.server = place.server
        self._truth = place.where
        self._changes = 0

    @property
    def where(self) -> Where:
        return self._truth

    async def change(self, *parities: str, store_after: float | None = 0.0, suffix: str = "") -> None:
        """Change passwords in the database, and in the store ``store_after`` seconds later (None: not at all)."""
        for parity in parities:
            self._changes += 1
            password = f"changed-{self._changes}-{getattr(self._place.where, parity).password[:8]}{suffix}"
            self._truth = await self._place.set_password(self._truth, parity, password)
        if store_after is not None:
            await asyncio.sleep(store_after)
            await self.publish()

    async def publish(self) -> None:
        await self._worker.ask("store", where=self._truth.as_message())

    async def store_down(self, down: bool) -> None:
        await self._worker.ask("store", down=down)


async def _steady(scene: Scene) -> None:
    await asyncio.sleep(5.0)


async def _one(scene: Scene) -> None:
    await asyncio.sleep(0.5)
    await scene.change("odd")
    await asyncio.sleep(4.0)
    await scene.change("even")
    await asyncio.sleep(3.5)


async def _both(scene: Scene) -> None:
    await asyncio.sleep(0.5)
    await scene.change("odd", "even", store_after=1.0)
    await asyncio.sleep(3.5)


async def _awkward(scene: Scene) -> None:
    await asyncio.sleep(1.0)
    await scene.change("odd", suffix="@:/?#%&=+ 'é")
    await asyncio.sleep(2.0)
    await scene.change("even", suffix="@:/?#%&=+ 'é")
    await asyncio.sleep(2.0)


async def _store_down(scene: Scene) -> None:
    await asyncio.sleep(0.5)
    await scene.store_down(True)
    await scene.change("odd")
    await asyncio.sleep(5.0)
    await scene.store_down(False)
    await asyncio.sleep(2.0)


async def _restart(scene: Scene) -> None:
    await asyncio.sleep(1.0)
    await scene.change("odd", store_after=None)
    await scene.server.restart()
    await scene.publish()
    await asyncio.sleep(4.0)


async def _terminated(scene: Scene) -> None:
    await asyncio.sleep(1.0)
    await scene.change("odd")
    await scene.server.terminate(scene.where.odd.username)
    await asyncio.sleep(3.0)


PHASES: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "steady": _steady,
    "one account changed every 4 s": _one,
    "both changed at once, store 1 s later": _both,
    "passwords with `@ : / ? # % &` and a non-ASCII letter": _awkward,
    "store down 5 s, one account changed": _store_down,
    "server restarted in a rotation": _restart,
    "rotated account's sessions terminated": _terminated,
}
BRIEFLY = ("both changed at once, store 1 s later", "store down 5 s, one account changed")
ROTATIONS = dict(zip(PHASES, (0, 2, 2, 2, 1, 1, 1), strict=True))


async def measure(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run each phase for each peer, as often as the plan says, and judge the targets."""
    names = (OURS, CALLABLE) if plan.quick else PEERS
    phases = [phase for phase in PHASES if not plan.quick or phase in BRIEFLY]
    steps = Steps(progress, "rotation", len(names) * len(phases) * plan.repetitions)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {phase: {} for phase in phases}
    async with stage(max_connections=100) as place:
        for _ in range(plan.repetitions):
            for phase in phases:
                for name in names:
                    if name in (NO_LIFETIME, CONTROL) and phase != "steady":
                        steps.advance()
                        continue
                    found[phase].setdefault(name, []).append(await _run(place, name, phase))
                    steps.advance()
    points = [
        {"phase": phase, "rotations": ROTATIONS[phase], "peers": {n: summarize(runs) for n, runs in peers.items()}}
        for phase, peers in found.items()
    ]
    return {"points": points, "targets": judge(points)}


async def _run(place: Stage, name: str, phase: str) -> dict[str, Any]:
    where = await place.restore()
    async with RemoteWorker("asyncio", name) as worker:
        opening = {"size": SIZE, "lifetime": LIFETIME, "store_latency": STORE_LATENCY}
        peer = NO_LIFETIME if name == CONTROL else name
        await worker.ask("open", peer=peer, where=where.as_message(), **opening)
        mark = place.server.mark()
        await worker.ask("load", tasks=TASKS)
        await PHASES[phase](Scene(place, worker))
        result: dict[str, Any] = await worker.ask("unload")
        result["failed_logins"] = place.server.failed_logins(mark)
        await worker.ask("close")
    return result


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors and failed logins of each repetition; how long acquires took, in milliseconds, over all of them."""
    waits = latencies(*runs)
    return {
        "errors": [sum(run["errors"].values()) for run in runs],
        "kinds": sorted({kind for run in runs for kind in run["errors"]}),
        "failed_logins": [run["failed_logins"] for run in runs],
        "gap": max(run["gap"] for run in runs),
        "samples": len(waits),
        "p50": percentile(waits, 0.5),
        "p99": percentile(waits, 0.99),
        "p999": percentile(waits, 0.999),
        "max": waits[-1],
    }


def judge(points: list[dict[str, Any]]) -> list[Judged]:
    """The targets: no error in the calm phases, few failed logins, no slow acquire.

    Errors are judged plus 1, since there is no ratio to a limit of 0.
    """
    ours = {point["phase"]: point["peers"][OURS] for point in points}
    calm = [phase for phase in list(PHASES)[:CALM] if phase in ours]
    logins = max(max(ours[point["phase"]]["failed_logins"]) / (point["rotations"] or 1) for point in points)
    judged = [
        Judged(Target("rotation: errors in the calm phases, plus 1", 1.0, at_most=True), 1.0 + worst, 0.0)
        for worst in [max(max(ours[phase]["errors"]) for phase in calm)]
    ]
    judged.append(Judged(Target("rotation: failed logins per rotation", 2.0, at_most=True), logins, 0.0))
    slowest = max(ours[phase]["max"] for phase in calm)
    judged.append(
        Judged(Target("rotation: slowest acquire of the calm phases, ms", SLOWEST, at_most=True), slowest, 0.0)
    )
    calmest = next((point["peers"] for point in points if NO_LIFETIME in point["peers"]), None)
    if calmest:
        without, again = (calmest[name]["p999"] for name in (NO_LIFETIME, CONTROL))
        name = "rotation: p99.9 in the calm phases relative to a pool without a lifetime"
        tail = max(ours[phase]["p999"] for phase in calm) / without
        judged.append(Judged(Target(name, 1.5, at_most=True), tail, abs(again / without - 1)))
    return judged
