"""The other end of :mod:`.worker`: starts the processes and sends them requests."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from array import array
from pathlib import Path
from typing import Any, Self

_CLOSE_TIMEOUT = 20.0


class WorkerFailed(Exception):
    """A peer could not do what it was asked to do."""


class RemoteWorker:
    """A process for one peer, on one kind of event loop."""

    def __init__(self, loop: str = "asyncio", name: str = "") -> None:
        self.name = name
        self._loop = loop

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.worker", self._loop),
            cwd=Path(__file__).parent.parent,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=2**26,
        )
        assert self._process.stderr is not None
        self._errors = asyncio.create_task(self._process.stderr.read(), name="benchmarks-stderr")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._errors

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Ask the process to do something, and return its answer. Raises :class:`WorkerFailed`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"{self.name}: the process ended in {do!r}:\n{(await self._errors).decode()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {do}: {answer['error']}")
        return answer["ok"]


def latencies(*results: dict[str, Any]) -> list[float]:
    """The latencies of several runs together, in milliseconds, in ascending order."""
    together = array("I")
    for result in results:
        together.frombytes(base64.b64decode(result["latencies"]))
    return [value / 1000 for value in sorted(together)]
