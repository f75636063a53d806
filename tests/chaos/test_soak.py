"""All faults at once, under load, for as long as requested, with either kind of reset: 6 s, 60 s as a proof, or
AIOPQR_SOAK_MINUTES.

AIOPQR_SOAK_SEED repeats a run's choices (but the timing still varies).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.load import Cuts, Load
from support.proxy import Proxy

import aiopqr
from aiopqr.testing import RotatingPostgres

from .chaos import Chaos

MINUTES = float(os.environ.get("AIOPQR_SOAK_MINUTES", 0))
SECONDS = MINUTES * 60 or (60.0 if os.environ.get("AIOPQR_PROOF") else 6.0)
SEED = int(os.environ.get("AIOPQR_SOAK_SEED") or random.randrange(2**32))


@pytest.mark.proof
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("session_reset", ["full", "deferred"])
async def test_soak_no_fault_reaches_the_application_and_nothing_is_left(
    session_reset: str, postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"\nchaos: seed {SEED}, {SECONDS:g} s, {session_reset} reset", flush=True)
    monkeypatch.setattr("aiopqr._refresh.quarantine.PROBE_FIRST", 0.3)
    monkeypatch.setattr("aiopqr._refresh.quarantine.PROBE_MAX", 1.0)
    monkeypatch.setattr("aiopqr._connect.account_choice.FULL_PAUSE", 0.3)
    for name in ("aiopqr", "asyncpg"):  # pytest would keep each record
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    postgres.source.interval = 0.5
    async with Proxy(postgres.server.host, postgres.server.port) as proxy:
        before = open_files()
        loads = await harm(postgres, proxy, session_reset)
        assert [text for load in loads for text in load.unexpected] == []
        del loads
        async with asyncio.timeout(10):
            while await postgres.sessions():
                await asyncio.sleep(0.05)
            while proxy.connections or open_files() > before:
                await asyncio.sleep(0.05)
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, asyncpg.Connection)] == []


async def harm(postgres: RotatingPostgres, proxy: Proxy, session_reset: str) -> list[Load]:
    cuts = Cuts()
    options: dict[str, Any] = {"ssl": "disable", "min_size": 2, "max_size": 5, "reset_timeout": 3.0}
    options["session_reset"] = session_reset
    dsn = proxy.dsn_of(postgres.dsn)
    async with (
        aiopqr.Refresher(postgres.source, timeout=0.5) as refresher,
        aiopqr.create_pool(dsn, credentials=refresher, name="short", max_lifetime=0.7, **options) as short,
        aiopqr.create_pool(dsn, credentials=refresher, name="drained", drain_on_rotation=True, **options) as drained,
    ):
        loads = [Load(pool, query_timeout=1.0, cuts=cuts) for pool in (short, drained)]
        chaos = Chaos(SEED, postgres, proxy, [short, drained], cuts)
        watching = asyncio.create_task(watch(chaos, loads))
        async with loads[0].running(8), loads[1].running(8):
            await chaos.run(SECONDS)
            for load in loads:
                await load.serves()
        watching.cancel()
        await asyncio.wait({watching})
        report(chaos, loads)
        assert_flat(watching)
        for pool in (short, drained):
            await all_permits_are_there(pool)
    return loads


async def all_permits_are_there(pool: aiopqr.AlternatingPool) -> None:
    held = [await pool.acquire(timeout=10) for _ in range(pool.get_max_size())]
    with pytest.raises(aiopqr.AcquireTimeout):
        await pool.acquire(timeout=0.01)
    for con in held:
        await pool.release(con)
    async with asyncio.timeout(10):
        while pool.stats().in_use:  # a due connection is closed in the background
            await asyncio.sleep(0.01)


MEMORY: list[tuple[float, float]] = []


async def watch(chaos: Chaos, loads: list[Load]) -> None:
    """Report progress, and take samples of the memory."""
    MEMORY.clear()
    begun, printed_at = time.monotonic(), 0.0
    while True:
        await asyncio.sleep(1.0)
        for load in loads:
            load.forget()
        passed = time.monotonic() - begun
        MEMORY.append((passed, resident()))
        if passed - printed_at >= (10 if SECONDS <= 120 else 60):
            printed_at = passed
            report(chaos, loads)


def report(chaos: Chaos, loads: list[Load]) -> None:
    served = sum(load.served for load in loads)
    slowest = max(load.slowest_acquire for load in loads)
    unexpected = sum(len(load.unexpected) for load in loads)
    print(
        f"chaos: {served} served, {sum(chaos.done.values())} faults, {chaos.rotated} passwords changed, "
        f"{chaos.postgres.failed_logins()} failed logins, slowest acquire {slowest:.2f} s, "
        f"{resident():.0f} MB, {unexpected} unexpected errors",
        flush=True,
    )


def assert_flat(watching: asyncio.Task[None]) -> None:
    """After the first quarter, in which caches fill, memory does not grow by more than noise."""
    assert watching.cancelled()
    if SECONDS >= 60:
        quarter, last = len(MEMORY) // 4, len(MEMORY) // 10
        early = max(size for _, size in MEMORY[quarter : quarter + last + 1])
        late = min(size for _, size in MEMORY[-last - 1 :])
        assert late < early + 10 + 0.05 * early, f"{early:.0f} MB became {late:.0f} MB"


def resident() -> float:
    """Megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
