"""A TCP proxy that swallows, delays, resets and refuses, for faults that no server produces by itself."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 65536
_AT_ONCE = struct.pack("ii", 1, 0)  # for SO_LINGER: no time to send what is left


class Proxy:
    """Forwards connections to ``host``:``port``, unless a test stops it. ``async with`` it on the loop that uses it."""

    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self.host, self.port = "127.0.0.1", 0
        #: Seconds that each chunk waits, in either direction.
        self.delay = 0.0
        #: Reset each new connection once the server has sent this many bytes (0: as soon as it is accepted).
        self.reset_after: int | None = None
        #: How many connections were accepted so far.
        self.accepted = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: socket.socket | None = None
        self._links: dict[asyncio.Task[None], socket.socket] = {}
        self._progress = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.refuse()
        await self.cut()

    def dsn_of(self, dsn: str) -> str:
        """``dsn``, through this proxy."""
        parts = urlsplit(dsn)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{self.host}:{self.port}"))

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    async def wait_accepted(self, count: int) -> None:
        """Wait until ``count`` connections have been accepted since the start."""
        while self.accepted < count:
            await self._progress.wait()

    def blackhole(self) -> None:
        """Accept, but no longer forward anything, in either direction, and notify nobody."""
        self._flowing.clear()

    def heal(self) -> None:
        """Forward again; what was held back in the meantime arrives."""
        self._flowing.set()
        self.delay = 0.0
        self.reset_after = None

    async def cut(self) -> int:
        """Reset all open connections (RST), and return how many there were."""
        links = dict(self._links)
        for link in links:
            link.cancel()
        if links:
            await asyncio.wait(links)
        for link in links.values():  # of one that was cancelled before it began
            _reset(link)
        return len(links)

    async def refuse(self) -> None:
        """Refuse new connections; open ones stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """Accept connections (again), on the same port."""
        if self._listener is None:
            # asyncio's own server loses a connection that is just being accepted when it closes (up to Python 3.12).
            self._listener = socket.create_server((self.host, self.port))
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError:  # it is already gone
            return
        accepted.setblocking(False)
        link = asyncio.create_task(self._link(accepted), name="proxy-link")
        self._links[link] = accepted
        link.add_done_callback(lambda done: self._links.pop(done, None))
        self.accepted += 1
        self._progress.set()
        self._progress = asyncio.Event()

    async def _link(self, accepted: socket.socket) -> None:
        budget = self.reset_after
        ends: list[asyncio.StreamWriter | socket.socket] = [accepted]
        try:
            if budget == 0:
                raise ConnectionResetError
            reader, writer = await asyncio.open_connection(sock=accepted)
            ends[0] = writer
            from_server, onward = await asyncio.open_connection(*self.target)
            ends.append(onward)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, onward, None), name="proxy-to-server")
                group.create_task(self._pump(from_server, writer, budget), name="proxy-to-client")
            # Both sides are done: an orderly end.
            for side in (writer, onward):
                side.close()
        except (OSError, ExceptionGroup):
            pass
        finally:
            for end in ends:
                _reset(end)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> None:
        while data := await reader.read(_CHUNK):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flowing.wait()
            if budget is not None:
                data, budget = data[:budget], budget - len(data)
            writer.write(data)
            await writer.drain()
            if budget is not None and budget <= 0:
                raise ConnectionResetError
        await self._flowing.wait()
        writer.close()


def _reset(connection: asyncio.StreamWriter | socket.socket) -> None:
    """End a connection by RST, unless it was closed in order."""
    if isinstance(connection, socket.socket):
        if connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            connection.close()
    elif not connection.is_closing():
        connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        connection.transport.abort()
