"""Rotator and pools together: passwords change, rotators die, and no application notices."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import aiopqr
from aiopqr.credentials import Parity
from aiopqr.rotation.errors import RotationRefused
from aiopqr.rotation.gates import Gate, Rules
from aiopqr.rotation.plan import Action
from aiopqr.rotation.rotator import Rotation, Rotator
from aiopqr.sources import FileSource

from . import test_crashes

PROOF = os.environ.get("AIOPQR_PROOF") == "1"
ROTATIONS = 100 if PROOF else 6
ANNOUNCED = 100 if PROOF else 4
KILLS = 200 if PROOF else 6
POOLS = 4
LIFETIME, INTERVAL = 0.4, 0.1
RULES = Rules(max_lifetime=LIFETIME, refresh_interval=INTERVAL, margin=0.3)


@dataclass
class Load:
    """What happened to the workers on the pools."""

    done: int = 0
    errors: list[BaseException] = field(default_factory=list)


@contextlib.asynccontextmanager
async def pools_under_load(rig: Any, *, spread: bool = False) -> AsyncIterator[Load]:
    """Four pools with their own sources, two workers each; ``spread``: with different intervals."""
    load, stop = Load(), asyncio.Event()

    async def work(pool: Any) -> None:
        while not stop.is_set():
            try:
                async with pool.acquire() as con:
                    await con.fetchval("SELECT 1")
                load.done += 1
            except Exception as exc:
                load.errors.append(exc)
            await asyncio.sleep(0.005)

    async with contextlib.AsyncExitStack() as stack:
        workers = []
        for number in range(POOLS):
            source = FileSource(rig.path, interval=INTERVAL * (1 + number * spread))
            pool = aiopqr.create_pool(
                rig.postgres.dsn, credentials=source, max_lifetime=LIFETIME, min_size=1, max_size=3, ssl=False
            )
            await stack.enter_async_context(pool)
            workers += [asyncio.create_task(work(pool), name="load") for _ in range(2)]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.gather(*workers)


async def rotate_when_it_may(rotator: Rotator) -> Rotation:
    """Wait for the gates as an operator's schedule would; any other refusal fails the test."""
    waiting = {Gate.TOO_SOON, Gate.OLD_SESSIONS, Gate.IN_PROGRESS}
    for _ in range(500):
        try:
            return await rotator.apply(await rotator.plan())
        except RotationRefused as exc:
            assert {objection.gate for objection in exc.objections} <= waiting, exc  # noqa: PT017
            await asyncio.sleep(0.05)
    raise AssertionError("the gates never opened: some pool does not recycle")


@pytest.mark.proof
@pytest.mark.timeout(1200)
async def test_alternating_rotations_go_unnoticed_by_pools_under_load(rig: Any) -> None:
    async with pools_under_load(rig) as load:
        rotator = rig.rotator(rules=RULES)
        taken = [(await rotate_when_it_may(rotator)).parity for _ in range(ROTATIONS)]
        while load.done < 100 * POOLS:
            await asyncio.sleep(0.01)
    assert load.errors == []
    assert set(itertools.pairwise(taken)) == {(Parity.ODD, Parity.EVEN), (Parity.EVEN, Parity.ODD)}
    assert await rig.is_whole()


@pytest.mark.proof
@pytest.mark.timeout(1800)
async def test_announced_rotations_cost_no_failed_login(rig: Any) -> None:
    """Pools of different phases poll the file; every login that the server refuses is in its log."""
    server = rig.postgres.server
    async with pools_under_load(rig, spread=True) as load:
        mark = server.mark()
        rotator = rig.rotator(rules=RULES, announce=1.5)
        changed = [(await rotate_when_it_may(rotator)).parity for _ in range(ANNOUNCED)]
        served = load.done
        while load.done < served + 100:
            await asyncio.sleep(0.01)
        assert sum(server.failed_logins(mark, username=name) for name in rig.postgres.usernames) == 0
    assert load.errors == []
    assert len(set(changed)) == 2
    assert await rig.is_whole()


@pytest.mark.proof
@pytest.mark.timeout(3600)
async def test_rotators_killed_at_random_go_unnoticed_by_pools_under_load(rig: Any) -> None:
    steps = await test_crashes.moments(rig)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    finished = 0
    async with pools_under_load(rig) as load:
        rotator = rig.rotator(rules=RULES)
        for _ in range(KILLS):
            await open_gates(rotator)
            code, _ = await test_crashes.drive(rig, fatal=chosen.randrange(len(steps)), rules=RULES)
            assert code == -signal.SIGKILL
            pair = (await rig.store.read()).pair
            accepted = [credential for credential in pair.credentials() if await rig.accepts(credential)]
            assert len({credential.username for credential in accepted}) == 2  # stored or staged
            if pair.pending is not None:
                finished += (await rotate_when_it_may(rotator)).action in (Action.RESUME, Action.FINISH)
            assert await rig.is_whole()
    assert load.errors == []
    assert load.done > 10 * KILLS
    assert finished > 0 or KILLS < 20


async def open_gates(rotator: Rotator) -> None:
    """Return when no gate objects to a rotation, so that the driver gets to its last moment."""
    while (await rotator.plan()).objections:
        await asyncio.sleep(0.05)
