"""The process that one peer runs in. ``python -m benchmarks.worker`` reads requests from standard input, line by line.

Each peer has its own process, so that its CPU time does not include the server's or another peer's, and so that no
peer's event loop, garbage or threads disturb another. Passwords are sent through the pipe, never as an argument.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import resource
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

from . import growing
from .peers import Operation, Options, Peer, Where, peer_of

TICK = 0.001


def cpu() -> float:
    """This process's CPU time, user and system, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Ticker:
    """Ticks on the event loop, and remembers the longest delay of a tick: a stall."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.longest = 0.0

    def __enter__(self) -> Ticker:
        self._last = time.perf_counter()
        self._timer = self._loop.call_later(TICK, self._tick)
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last - TICK)
        self._last = now
        self._timer = self._loop.call_later(TICK, self._tick)


async def run(operation: Operation, tasks: int, seconds: float, *, ticking: bool = False) -> dict[str, Any]:
    """Repeat ``operation`` in ``tasks`` tasks for ``seconds`` seconds. Latencies are in microseconds."""
    latencies, per_task = array("I"), [0] * tasks
    clock = time.perf_counter

    async def work(number: int) -> None:
        now = clock()
        while now < until or not per_task[number]:
            await operation()
            then, now = now, clock()
            latencies.append(int((now - then) * 1e6))
            per_task[number] += 1

    gc.collect()
    ticker = Ticker() if ticking else None
    spent, began = cpu(), clock()
    until = began + seconds
    if ticker:
        with ticker:
            await asyncio.gather(*(work(number) for number in range(tasks)))
    else:
        await asyncio.gather(*(work(number) for number in range(tasks)))
    took, spent = clock() - began, cpu() - spent
    return {
        "operations": len(latencies),
        "seconds": took,
        "cpu": spent,
        "latencies": base64.b64encode(latencies.tobytes()).decode(),
        "per_task": per_task,
        "stall": ticker.longest if ticker else None,
    }


class RemoteStore:
    """The secret store as this process sees it. After ``latency`` seconds, it returns the latest pair or fails."""

    def __init__(self, where: Where, latency: float) -> None:
        self.where = where
        self.latency = latency
        self.down = False

    async def fetch(self) -> Where:
        where, down = self.where, self.down  # a store answers with what it had when it was asked
        await asyncio.sleep(self.latency)
        if down:
            raise ConnectionError("the store is down")
        return where


class Load:
    """Tasks that acquire, run ``SELECT 1``, release and pause for a millisecond, while passwords change."""

    def __init__(self, waited: Callable[[], Any], tasks: int) -> None:
        self._waited = waited
        self._began = time.perf_counter()
        self.waits = array("I")
        self.errors: dict[str, int] = {}
        self._last = self._began
        self.gap = 0.0
        self._ending = False
        self._tasks = [asyncio.create_task(self._work()) for _ in range(tasks)]

    async def _work(self) -> None:
        while not self._ending:
            try:
                waited = await self._waited()
            except Exception as exc:
                name = type(exc).__name__
                self.errors[name] = self.errors.get(name, 0) + 1
            else:
                now = time.perf_counter()
                self.waits.append(int(waited * 1e6))
                self.gap, self._last = max(self.gap, now - self._last), now
            await asyncio.sleep(0.001)

    async def stop(self) -> dict[str, Any]:
        """Let each task finish its turn. Cancel those that take over a second, and wait another second for them."""
        self._ending = True
        took = time.perf_counter() - self._began
        gap = max(self.gap, time.perf_counter() - self._last)
        _, stuck = await asyncio.wait(self._tasks, timeout=1.0)
        for task in stuck:
            task.cancel()
        if stuck:
            await asyncio.wait(stuck, timeout=1.0)
        if stuck:
            self.errors["never came back"] = len(stuck)
        waits = base64.b64encode(self.waits.tobytes()).decode()
        return {"latencies": waits, "errors": self.errors, "gap": gap, "seconds": took}


class Worker:
    """Carries out the requests."""

    def __init__(self) -> None:
        self._peer: Peer | None = None
        self._store: RemoteStore | None = None
        self._load: Load | None = None

    async def open(
        self, peer: str, where: dict[str, Any], more: dict[str, Any] | None = None,
        store_latency: float | None = None, **options: Any,
    ) -> None:  # fmt: skip
        kind, own = peer_of(peer)
        place = Where.of_message(where)
        self._store = None if store_latency is None else RemoteStore(place, store_latency)
        self._make = lambda: kind(place, Options(store=self._store, more={**own, **(more or {})}, **options))
        self._peer = self._make()
        await self._peer.open()

    async def reopen(self) -> None:
        """Start afresh, with nothing cached from before."""
        await self.close()
        self._peer = self._make()
        await self._peer.open()

    async def run(self, operation: str, tasks: int, seconds: float, ticking: bool = False) -> dict[str, Any]:
        assert self._peer is not None
        if own := getattr(self._peer, "run", None):
            result: dict[str, Any] = await own(tasks, seconds)
            return result
        return await run(self._peer.operation(operation), tasks, seconds, ticking=ticking)

    async def load(self, tasks: int) -> None:
        assert self._peer is not None
        self._load = Load(self._peer.operation("waited"), tasks)

    async def unload(self) -> dict[str, Any]:
        assert self._load is not None
        return await self._load.stop()

    async def store(self, where: dict[str, Any] | None = None, down: bool | None = None) -> None:
        assert self._store is not None
        if where is not None:
            self._store.where = Where.of_message(where)
        if down is not None:
            self._store.down = down

    async def grow(self, step: str, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = await growing.STEPS[step](**arguments)
        return result

    async def close(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            await peer.close()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=2**24)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while line := await reader.readline():
                message = json.loads(line)
                try:
                    answer = {"ok": await getattr(self, message.pop("do"))(**message)}
                except Exception as exc:
                    answer = {"error": f"{type(exc).__name__}: {exc}"}
                sys.stdout.write(json.dumps(answer) + "\n")
                sys.stdout.flush()
        except BrokenPipeError:
            sys.stdout = None  # the parent was killed, so nobody will read what is buffered
        finally:
            await self.close()


def main() -> None:
    factory = None
    if sys.argv[1:] == ["uvloop"]:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(Worker().serve())


if __name__ == "__main__":
    main()
