"""Faults in a random order, one after another and at the same time, drawn from a seed.

Each fault ends by itself within two seconds, so that no acquire, which may take 30, has a reason to fail. Faults that
need the server's superuser come one at a time; the store and the network misbehave alongside them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

from support.load import Cuts
from support.proxy import Proxy

import aiopqr
from aiopqr.rotation.sql import identifier
from aiopqr.testing import HANG, RotatingPostgres


class Chaos:
    """Does harm to a server, the way to it, the store and the pools."""

    def __init__(
        self, seed: int, postgres: RotatingPostgres, proxy: Proxy, pools: list[aiopqr.AlternatingPool], cuts: Cuts
    ) -> None:
        self.random = random.Random(seed)
        self.postgres, self.proxy, self.pools, self.cuts = postgres, proxy, pools, cuts
        self.done: Counter[str] = Counter()
        self.rotated = 0
        self._server = asyncio.Lock()
        self._network = asyncio.Lock()
        self._store = asyncio.Lock()
        self._faults: list[tuple[int, asyncio.Lock | None, Callable[[], Awaitable[None]]]] = [
            (6, self._server, self.rotate),
            (3, self._server, self.rotate_both),
            (3, self._server, self.terminate),
            (1, self._server, self.restart),
            (2, self._server, self.lock_account),
            (2, self._server, self.fill_account),
            (2, self._network, self.refuse),
            (2, self._network, self.cut),
            (1, self._network, self.swallow),
            (2, self._network, self.reset_logins),
            (2, self._network, self.slow_down),
            (2, self._store, self.store_down),
            (2, self._store, self.store_hangs),
            (2, self._store, self.store_lies),
            (2, None, self.cancel_acquires),
            (2, None, self.drain),
            (1, None, self.expire),
        ]

    async def run(self, seconds: float) -> None:
        """Do harm for this long, two or three faults at a time."""
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(self._keep_on(seconds), name=f"chaos-{number}")

    async def _keep_on(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            (_, lock, fault), *_ = self.random.choices(self._faults, [weight for weight, *_ in self._faults])
            if lock is None:
                await fault()
            else:
                async with lock:
                    await fault()
            self.done[fault.__name__] += 1
            await asyncio.sleep(self.random.uniform(0.0, 0.3))

    async def _a_while(self, longest: float = 1.0) -> None:
        await asyncio.sleep(self.random.uniform(0.1, 1.0) * longest)

    # The database.

    async def rotate(self) -> None:
        self.rotated += 1
        await self.postgres.rotate(self._parity(), store_delay=self.random.uniform(0, 0.5))
        await self._a_while(0.6)

    async def rotate_both(self) -> None:
        self.rotated += 2
        await self.postgres.rotate_both(store_delay=self.random.uniform(0, 0.8))
        await self._a_while()

    async def terminate(self) -> None:
        async with self.cuts.cutting():
            await self.postgres.terminate(self.random.choice(["odd", "even", None]))

    async def restart(self) -> None:
        async with self.cuts.cutting():
            await self.postgres.server.halt(self.random.choice(["fast", "immediate"]))
        await self._a_while(0.5)
        await self.postgres.server.resume()

    async def lock_account(self) -> None:
        await self._alter_for_a_while("NOLOGIN", "LOGIN")

    async def fill_account(self) -> None:
        await self._alter_for_a_while("CONNECTION LIMIT 1", "CONNECTION LIMIT -1")

    async def _alter_for_a_while(self, bad: str, good: str) -> None:
        role = identifier(self.random.choice(self.postgres.usernames))
        await self.postgres.server.execute(f"ALTER ROLE {role} {bad}")
        await self._a_while(0.8)
        await self.postgres.server.execute(f"ALTER ROLE {role} {good}")

    # The network.

    async def refuse(self) -> None:
        await self.proxy.refuse()
        await self._a_while()
        await self.proxy.accept()

    async def cut(self) -> None:
        async with self.cuts.cutting():
            await self.proxy.cut()

    async def swallow(self) -> None:
        async with self.cuts.cutting():
            self.proxy.blackhole()
            await self._a_while(1.5)
            self.proxy.heal()
            await asyncio.sleep(0.05)

    async def reset_logins(self) -> None:
        self.proxy.reset_after = self.random.choice([0, 1, 50, 200, 450])
        async with self.cuts.cutting():  # also those that logged in on a budget, and used it up in a query
            await self._a_while()
            self.proxy.heal()
            await asyncio.sleep(0.05)
            await self.proxy.cut()

    async def slow_down(self) -> None:
        self.proxy.delay = self.random.uniform(0.0, 0.05)
        await self._a_while()
        self.proxy.heal()

    # The store.

    async def store_down(self) -> None:
        self.postgres.source.error = aiopqr.SourceError("the store is down")
        await self._a_while(1.5)
        self.postgres.source.error = None

    async def store_hangs(self) -> None:
        self.postgres.source.then(HANG)

    async def store_lies(self) -> None:
        pair = self.postgres.source.pair
        assert pair.odd
        wrong = aiopqr.Credential(pair.odd.username, "a lie")
        lies = (
            replace(pair, odd=pair.even, even=pair.odd),
            replace(pair, odd=None, active="even"),
            replace(pair, odd=wrong),
            "not a pair",
        )
        self.postgres.source.then(self.random.choice(lies))

    # The pools.

    async def cancel_acquires(self) -> None:
        pool = self.random.choice(self.pools)
        tasks = [asyncio.create_task(self._use(pool)) for _ in range(20)]
        for task in tasks:
            await asyncio.sleep(self.random.uniform(0, 0.01))
            task.cancel()
        await asyncio.wait(tasks)

    async def _use(self, pool: aiopqr.AlternatingPool) -> None:
        async with pool.acquire():
            await asyncio.sleep(self.random.uniform(0, 0.005))

    async def drain(self) -> None:
        try:
            async with asyncio.timeout(self.random.uniform(0.0, 1.0)):
                await self.random.choice(self.pools).drain()
        except TimeoutError:
            pass

    async def expire(self) -> None:
        await self.random.choice(self.pools).expire_connections()

    def _parity(self) -> str:
        return self.random.choice(["odd", "even"])
