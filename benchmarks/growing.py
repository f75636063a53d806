"""Measures what growth costs, from inside the process that grows: time, memory, CPU, wake-ups.

These steps run in a worker (``grow``). Each size has a new one, because a process does not give memory back.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

import aiopqr
from aiopqr import Parity

from .peers import Where
from .peers.ours import pair_of


class _Grown:
    """The pools of this process, and the pair that they all use."""

    pools: list[Any]
    source: _Pair
    refresher: aiopqr.Refresher


class _Pair:
    interval = 0.0

    def __init__(self, pair: aiopqr.CredentialPair) -> None:
        self.pair = pair

    async def fetch(self) -> aiopqr.CredentialPair:
        return self.pair


def _resident() -> int:
    """Bytes of memory in use now or, without /proc, the most that was ever in use."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _Cost:
    """Time, CPU and memory of a block."""

    def __enter__(self) -> _Cost:
        gc.collect()
        self._memory, self._cpu, self._began = _resident(), time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        gc.collect()
        self.memory = _resident() - self._memory

    def figures(self) -> dict[str, float]:
        return {"seconds": self.seconds, "cpu": self.cpu, "memory": self.memory}


async def open_pools(where: dict[str, Any], size: int, pools: int, plain: bool = False) -> dict[str, Any]:
    """Open pools of ``size`` connections each, with one refresher for all; or, if ``plain``, asyncpg's own pools."""
    place = Where.of_message(where)
    _Grown.source = _Pair(pair_of(place))
    with _Cost() as cost:
        if plain:
            login: dict[str, Any] = {"user": place.odd.username, "password": place.odd.password}
            _Grown.pools = [
                await asyncpg.create_pool(place.dsn, min_size=size, max_size=size, **login) for _ in range(pools)
            ]
        else:
            _Grown.refresher = await aiopqr.Refresher(_Grown.source).start()
            _Grown.pools = [
                await aiopqr.create_pool(place.dsn, credentials=_Grown.refresher, min_size=size, max_size=size)
                for _ in range(pools)
            ]
    return cost.figures()


async def steady(operations: int, tasks: int = 10) -> dict[str, Any]:
    """Run ``SELECT 1`` in ``tasks`` tasks, on all the pools in turn."""
    left = operations

    async def work(number: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with _Grown.pools[(left + number) % len(_Grown.pools)].acquire() as con:
                await con.fetchval("SELECT 1")

    with _Cost() as cost:
        await asyncio.gather(*(work(number) for number in range(tasks)))
    return {**cost.figures(), "operations": operations}


async def rotate(where: dict[str, Any], parity: str) -> dict[str, Any]:
    """Fetch one account's new password, which the database has already, and replace the superseded connections."""
    changed = Parity(parity)
    before = [pool.stats() for pool in _Grown.pools]
    _Grown.source.pair = pair_of(Where.of_message(where))
    with _Cost() as cost:
        await _Grown.refresher.refresh()
        await asyncio.gather(*(pool.drain() for pool in _Grown.pools))
    after = [pool.stats() for pool in _Grown.pools]

    def counted(stats: list[aiopqr.PoolStats], what: str) -> int:
        return sum(getattr(account, what) for one in stats for account in one.accounts.values())

    return {
        **cost.figures(),
        "superseded": sum(one.accounts[changed].open for one in before),
        "opened": counted(after, "opened") - counted(before, "opened"),
        "refused": counted(after, "refused") - counted(before, "refused"),
    }


async def idle(seconds: float) -> dict[str, Any]:
    """Do nothing, and count how many times the event loop wakes up, apart from this coroutine's own turns."""
    loop = asyncio.get_running_loop()
    selector = loop._selector  # type: ignore[attr-defined]
    select: Callable[..., Any] = selector.select
    wakes = 0

    def counted(timeout: float | None = None) -> Any:
        nonlocal wakes
        wakes += 1
        return select(timeout)

    with _Cost() as cost:
        selector.select = counted
        try:
            await asyncio.sleep(seconds)
        finally:
            del selector.select
    # Two turns are this coroutine's own: the one that went to sleep, and the one that ended it.
    return {**cost.figures(), "wakes": max(wakes - 2, 0)}


async def close() -> dict[str, Any]:
    with _Cost() as cost:
        await asyncio.gather(*(pool.close() for pool in _Grown.pools))
        if hasattr(_Grown, "refresher"):
            await _Grown.refresher.close()
    return cost.figures()


STEPS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "open": open_pools,
    "steady": steady,
    "rotate": rotate,
    "idle": idle,
    "close": close,
}
