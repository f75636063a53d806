"""The load: workers that do what a service does, and a tally of the results.

It is the same for every pool. It knows nothing of passwords or rotations, only ``acquire()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from math import exp, log

import asyncpg

from .environment import WALLETS

SLOT = 0.5  # seconds that each point of the picture covers
ACQUIRE_TIMEOUT = 5.0
_THINK = (0.006, 0.026)  # seconds between two operations of a worker
_AFTER_FAILURE = (0.5, 1.5)  # seconds until a worker tries again, as a client would
_FINENESS = 50.0  # buckets per factor of e, so percentiles are accurate to 2 %


class Latencies:
    """Durations in seconds, counted in buckets 2 % apart, so that a long run needs no more memory."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.worst = 0.0

    def record(self, seconds: float) -> None:
        self._buckets[round(log(max(seconds, 1e-7)) * _FINENESS)] += 1
        self.count += 1
        self.worst = max(self.worst, seconds)

    def percentile(self, share: float) -> float:
        """The duration that a ``share`` (0 to 1) of all durations did not exceed; 0.0 if there were none."""
        left = share * self.count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return min(exp(bucket / _FINENESS), self.worst)
        return self.worst


@dataclass(slots=True)
class Slot:
    """What happened in half a second."""

    waits: Latencies = field(default_factory=Latencies)
    operations: int = 0
    failed: int = 0
    odd: int = 0  # open connections
    even: int = 0


class Tally:
    """The results of one pool's load. ``slots`` are the half-seconds since the start."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waits = Latencies()
        self.slots: list[Slot] = []
        self.operations = 0
        self.transfers = 0
        self.errors: Counter[str] = Counter()
        self._served_at = self.started
        self._silence = 0.0

    @property
    def failed(self) -> int:
        return self.errors.total()

    @property
    def slot(self) -> Slot:
        """The current slot."""
        number = int((time.perf_counter() - self.started) / SLOT)
        while len(self.slots) <= number:
            self.slots.append(Slot())
        return self.slots[number]

    def acquired(self, seconds: float) -> None:
        self.waits.record(seconds)
        self.slot.waits.record(seconds)

    def succeeded(self, *, transfer: bool) -> None:
        now = time.perf_counter()
        self._silence = max(self._silence, now - self._served_at)
        self._served_at = now
        self.operations += 1
        self.transfers += transfer
        self.slot.operations += 1

    def failure(self, exc: Exception) -> None:
        self.errors[type(exc).__name__] += 1  # never its text, which comes from the server
        self.slot.failed += 1

    def silence(self, until: float) -> float:
        """The longest time without a successful operation, in seconds, up to ``until`` seconds after the start."""
        return max(self._silence, self.started + until - self._served_at)

    def rate(self) -> float:
        """Operations per second, over the last full second."""
        full = self.slots[:-1][-2:]
        return sum(slot.operations for slot in full) / (len(full) * SLOT) if full else 0.0


async def work(pool: asyncpg.Pool[asyncpg.Record], tally: Tally, until: asyncio.Event, seed: int) -> None:
    """One worker: small queries, and some transactions, until ``until`` is set."""
    chance = random.Random(seed)
    while not until.is_set():
        giver, taker = chance.sample(range(1, WALLETS + 1), 2)
        is_transfer = chance.random() < 0.15
        try:
            began = time.perf_counter()
            async with pool.acquire(timeout=ACQUIRE_TIMEOUT) as con:
                tally.acquired(time.perf_counter() - began)
                if is_transfer:
                    await _transfer(con, giver, taker)
                else:
                    await con.fetchval("SELECT coins FROM wallet WHERE id = $1", giver)
        except asyncio.CancelledError:
            tally.errors["did not end"] += 1
            raise
        except Exception as exc:
            tally.failure(exc)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), chance.uniform(*_AFTER_FAILURE))
        else:
            tally.succeeded(transfer=is_transfer)
            await asyncio.sleep(chance.uniform(*_THINK))


async def _transfer(con: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], giver: int, taker: int) -> None:
    """Move a coin. The rows are locked in the order of their ids, so that workers cannot deadlock."""
    async with con.transaction():
        for wallet in sorted((giver, taker)):
            coins = -1 if wallet == giver else 1
            await con.execute("UPDATE wallet SET coins = coins + $2 WHERE id = $1", wallet, coins)
        await con.execute("INSERT INTO transfer (giver, taker) VALUES ($1, $2)", giver, taker)
