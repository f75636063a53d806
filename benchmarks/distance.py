"""Makes a server seem further away: ``python -m benchmarks.distance HOST PORT SECONDS`` forwards to it with a delay.

Each direction is delayed by that many seconds. The program prints the port that it listens on. Its event loop waits
with select(2), since epoll's timeouts are whole milliseconds.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from .peers import Where


class Side(asyncio.Protocol):
    """One end of a forwarded connection: what arrives here is sent from the other end, after the delay."""

    def __init__(self, delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self._under_way: deque[bytes] = deque()
        self._transport: asyncio.Transport | None = None
        self.other: Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._under_way.append(data)
        self._loop.call_later(self._delay, self._arrive)

    def _arrive(self) -> None:
        data = self._under_way.popleft()  # timers due at the same moment fire in any order; data must stay in order
        if self.other is not None and self.other._transport is not None:
            self.other._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._loop.call_later(self._delay, self._hang_up)

    def _hang_up(self) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.close()


class Front(Side):
    """The end that a client has connected to. It connects to the server before it reads what the client sends."""

    def __init__(self, host: str, port: int, delay: float) -> None:
        super().__init__(delay)
        self._server = (host, port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast(asyncio.Transport, transport).pause_reading()
        self._connecting = self._loop.create_task(self._connect(), name="benchmarks-distance-connect")

    async def _connect(self) -> None:
        assert self._transport is not None
        try:
            _, self.other = await self._loop.create_connection(lambda: Side(self._delay), *self._server)
        except OSError:
            self._transport.abort()
            return
        self.other.other = self
        self._transport.resume_reading()


async def forward(host: str, port: int, delay: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Front(host, port, delay), "127.0.0.1")
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def at_distance(where: Where, delay: float) -> AsyncIterator[Where]:
    """Yield the same server, but ``delay`` seconds away in each direction. With 0, yield the server itself."""
    if not delay:
        yield where
        return
    command = (sys.executable, "-m", "benchmarks.distance", where.host, str(where.port), str(delay))
    top = Path(__file__).parent.parent
    process = await asyncio.create_subprocess_exec(*command, cwd=top, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield replace(where, host="127.0.0.1", port=int(await process.stdout.readline()))
    finally:
        process.kill()
        await process.wait()


def main() -> None:
    host, port, delay = sys.argv[1:]

    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=loop) as runner, suppress(KeyboardInterrupt):
        runner.run(forward(host, int(port), float(delay)))


if __name__ == "__main__":
    main()
