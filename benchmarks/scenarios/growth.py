"""The cost of growth: time and memory for opening, using and rotating, with larger pools and with more of them."""

from __future__ import annotations

from typing import Any

from ..measure import Judged, Target
from ..stage import Stage, stage
from ..workers import RemoteWorker
from .plan import Plan, Progress, Steps

OPERATIONS = 2000
IDLE = 3.0
ROTATIONS = 6
SIZES = ((10, 1), (100, 1), (300, 1))  # connections in a pool, pools
POOLS = ((5, 1), (5, 10), (5, 50))


async def measure(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure each size in its own process, for aiopqr and for asyncpg's pool, and judge what must not grow."""
    shapes = ((10, 1), (5, 10)) if plan.quick else (*SIZES, *POOLS)
    steps = Steps(progress, "growth", 2 * len(shapes) + 1)
    points = []
    async with stage(max_connections=400) as place:
        control = await _one(place, *shapes[0], plain=False)  # the smallest, compared with itself
        steps.advance()
        for size, pools in shapes:
            point: dict[str, Any] = {"size": size, "pools": pools}
            for name in ("aiopqr", "asyncpg"):
                point[name] = await _one(place, size, pools, plain=name == "asyncpg")
                steps.advance()
            points.append(point)
    return {"points": points, "control": control, "targets": judge(points, control)}


async def _one(place: Stage, size: int, pools: int, *, plain: bool) -> dict[str, Any]:
    where = await place.restore()
    async with RemoteWorker("asyncio", f"{pools} x {size}") as worker:
        # One small pool first: what a process loads only once is not a cost of growth.
        await worker.ask("grow", step="open", where=where.as_message(), size=1, pools=1, plain=plain)
        await worker.ask("grow", step="steady", operations=50)
        await worker.ask("grow", step="close")
        figures = {"open": await worker.ask(
            "grow", step="open", where=where.as_message(), size=size, pools=pools, plain=plain
        )}  # fmt: skip
        await worker.ask("grow", step="steady", operations=OPERATIONS // 3)
        figures["steady"] = await worker.ask("grow", step="steady", operations=OPERATIONS)
        figures["idle"] = await worker.ask("grow", step="idle", seconds=IDLE)
        if not plain:
            figures["rotate"] = {}
            for number in range(ROTATIONS):
                parity = ("odd", "even")[number % 2]
                where = await place.set_password(where, parity, f"{getattr(where, parity).password}-{number}")
                cost = await worker.ask("grow", step="rotate", where=where.as_message(), parity=parity)
                figures["rotate"] = {key: figures["rotate"].get(key, 0) + value for key, value in cost.items()}
        figures["close"] = await worker.ask("grow", step="close")
    return figures


def cpu_for_each(rotate: dict[str, float]) -> float:
    """The CPU time in seconds that one login of a rotation costs the client."""
    return rotate["cpu"] / rotate["opened"]


def judge(points: list[dict[str, Any]], control: dict[str, Any]) -> list[Judged]:
    """A rotation's work may grow only with the connections that it touches, and an idle pool must not wake up."""
    rotations = [point["aiopqr"]["rotate"] for point in points]
    smallest = cpu_for_each(rotations[0])
    wakes = max(point["aiopqr"]["idle"]["wakes"] for point in points)
    return [
        Judged(
            Target("growth: logins in a rotation, per connection of the changed account", 1.1, at_most=True),
            max(one["opened"] / one["superseded"] for one in rotations),
            0.0,
        ),
        Judged(
            Target("growth: a rotation's CPU per login, costliest size relative to smallest", 2.0, at_most=True),
            max(map(cpu_for_each, rotations)) / smallest,
            abs(cpu_for_each(control["rotate"]) / smallest - 1),
        ),
        Judged(Target(f"growth: wake-ups of idle pools in {IDLE:g} s, plus 1", 2.0, at_most=True), 1.0 + wakes, 0.0),
    ]
