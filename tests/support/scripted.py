"""A Postgres that does what a test asks, in virtual time and without a network. Connections to it are asyncpg's own.

Nothing happens by itself: a backend works when a test lets it, and time passes when the loop has nothing else to do.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg.connect_utils import _ClientConfiguration, _ConnectionParameters
from asyncpg.protocol.protocol import Protocol

from aiopqr import Credential, Parity
from aiopqr._connect import Made
from aiopqr._pool.self_test import message
from aiopqr._refresh import Attempt


class Loop(asyncio.SelectorEventLoop):
    """An event loop that skips the time for which it would sleep. It raises if it would sleep for ever."""

    def __init__(self) -> None:
        self.passed = 1000.0
        self.cancel_request: Callable[[int], None] = lambda pid: None
        super().__init__(_Sleepless(self))

    def time(self) -> float:
        return self.passed

    def turn(self, times: int) -> None:
        """Run everything that is ready, again and again, while no time passes."""

        def again(left: int) -> None:
            self.call_soon(again, left - 1) if left else self.stop()

        again(times)
        self.run_forever()

    def pass_time(self, seconds: float) -> None:
        """Run everything that has something to do within ``seconds``."""
        self.run_until_complete(asyncio.sleep(seconds))

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **kwargs: Any) -> Any:
        """The connection that asyncpg opens to cancel a query."""
        protocol = protocol_factory()
        return _CancelTransport(self, protocol), protocol


class _Sleepless(selectors.SelectSelector):
    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if ready := super().select(0):
            return ready
        if timeout is None:
            raise RuntimeError("nothing will ever happen any more")
        self._loop.passed += timeout
        return []


class _CancelTransport(asyncio.Transport):
    def __init__(self, loop: Loop, protocol: Any) -> None:
        super().__init__()
        self._loop, self._protocol = loop, protocol

    def write(self, data: Any) -> None:
        self._loop.cancel_request(int.from_bytes(data[8:12], "big"))
        self._loop.call_soon(self._protocol.connection_lost, None)

    def close(self) -> None: ...


class Refused(ConnectionError):
    """The server refused a connect."""


class Server:
    """Where a pool connects to, with one account: see :meth:`connect`, and let its ``connecting`` succeed or fail."""

    def __init__(self, loop: Loop, account: Credential) -> None:
        self.loop = loop
        self._account = account
        self.backends: list[Backend] = []
        self._connecting: list[asyncio.Future[None]] = []
        self.is_healed = False
        self.most_sockets = 0
        loop.cancel_request = self._cancel

    @property
    def open(self) -> list[Backend]:
        return [backend for backend in self.backends if not backend.is_over]

    @property
    def connecting(self) -> list[asyncio.Future[None]]:
        return [gate for gate in self._connecting if not gate.done()]

    def backend_of(self, con: asyncpg.Connection[Any]) -> Backend:
        return next(backend for backend in self.backends if backend.pid == con.get_server_pid())

    async def connect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Made:
        """Takes the place of a maker's ``connect()``."""
        connection_class, record_class, loop = (kwargs[key] for key in ("connection_class", "record_class", "loop"))
        gate = loop.create_future()
        self._connecting.append(gate)
        self.most_sockets = max(self.most_sockets, len(self._connecting) + len(self.open))
        try:
            if not self.is_healed:
                await gate
        finally:
            self._connecting.remove(gate)
        backend = Backend(self, len(self.backends) + 1)
        self.backends.append(backend)
        params: Any = _ConnectionParameters(
            **dict.fromkeys(_ConnectionParameters._fields) | {"user": "app", "database": "app"}
        )
        config: Any = _ClientConfiguration(None, 0, 0, 0)  # type: ignore[call-arg]
        connected = loop.create_future()
        protocol: Any = Protocol("/socket", connected, params, record_class, loop)
        backend.accept(protocol)
        try:
            await connected
        except asyncio.CancelledError:
            backend.transport.abort()
            raise
        con = connection_class(protocol, backend.transport, loop, "/socket", config, params)
        protocol.set_connection(con)
        backend.is_entered = True
        return Made(con, Attempt(Parity.ODD, self._account, 0, loop.time()), "any")

    def heal(self) -> None:
        """From now on, answer everything immediately, and without an error."""
        self.is_healed = True
        for gate in self.connecting:
            gate.set_result(None)
        for backend in self.open:
            backend.work_off()

    def _cancel(self, pid: int) -> None:
        self.backends[pid - 1].cancels += 1


class Backend:
    """One session. What ``SET`` leaves behind is in ``traces``, until a ``RESET ALL``."""

    def __init__(self, server: Server, pid: int) -> None:
        self.pid = pid
        self.queries: deque[str] = deque()  # received and not answered; an empty one means Terminate
        self.traces = False
        self.transaction = b"I"  # as ReadyForQuery reports it
        self.cancels = 0  # requested, but without an effect yet
        self.is_entered = False  # the client has logged in, and knows that
        self.is_over = False
        self.has_said_goodbye = False  # and the client has received that
        self._server = server
        self._unsent = b""
        self._unconfirmed = 0  # how much of that is up to the last ReadyForQuery

    def accept(self, protocol: Any) -> None:
        self.transport = _Transport(self._server.loop, self, protocol)
        protocol.connection_made(self.transport)
        version, key = message(b"S", b"server_version\x0016.0\0"), message(b"K", self.pid.to_bytes(4, "big") + bytes(4))
        self.send(message(b"R", bytes(4)) + version + key + message(b"Z", self.transaction))

    @property
    def is_clean(self) -> bool:
        """Whether the client may rely on a clean session: it is clean, and the client has received that."""
        is_idle = not self.queries and not self._unconfirmed and self.transaction == b"I"
        return is_idle and not self.traces and not self.has_said_goodbye

    # What the server does.

    def answer(self, withheld: int = 0) -> None:
        """Run the oldest query, and send the answer except for its last ``withheld`` bytes."""
        if not self.queries:
            self.send(b"", withheld)
        elif not (query := self.queries.popleft()):
            self.end()
        elif (self.transaction == b"E" and query != "ROLLBACK") or query == "FAIL":
            self._fail("25P02", withheld)
        else:
            if query == "SET":
                self.traces = True
            elif "RESET ALL" in query:
                self.traces = False
            self.transaction = {"BEGIN": b"T", "ROLLBACK": b"I"}.get(query, self.transaction)
            self._complete(message(b"C", b"DONE\0"), withheld)

    def heed_cancel(self, withheld: int = 0) -> None:
        """A cancel request arrives, and cancels whatever is running by now."""
        self.cancels -= 1
        if self.queries and self.queries[0]:
            self.queries.popleft()
            self._fail("57014", withheld)

    def fail(self, withheld: int = 0) -> None:
        """The oldest query fails for a reason of the server's."""
        if self.queries and self.queries[0]:
            self.queries.popleft()
            self._fail("53200", withheld)

    def send(self, data: bytes, withheld: int = 0) -> None:
        """Send what was withheld, and then ``data``."""
        self._unsent += data
        at = max(len(self._unsent) - withheld, 0)
        data, self._unsent = self._unsent[:at], self._unsent[at:]
        self._unconfirmed = max(self._unconfirmed - at, 0)
        if data:
            self._server.loop.call_soon(self.transport.deliver, data)

    def say_goodbye(self) -> None:
        """Send a FATAL; the end of the connection follows."""
        self.send(message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating\0\0"))
        self._server.loop.call_soon(setattr, self, "has_said_goodbye", True)

    def end(self) -> None:
        """Close the connection without a message."""
        self.is_over = True
        self._server.loop.call_soon(self.transport.end)

    def work_off(self) -> None:
        """Answer everything, including what arrives meanwhile."""
        if self.has_said_goodbye:
            self.end()
        self.send(b"")
        while self.queries:
            self.answer()

    def _fail(self, code: str, withheld: int) -> None:
        if self.transaction == b"T":
            self.transaction = b"E"
        self._complete(message(b"E", f"SERROR\0VERROR\0C{code}\0Mno\0\0".encode()), withheld)

    def _complete(self, answer: bytes, withheld: int) -> None:
        answer += message(b"Z", self.transaction)
        self._unconfirmed = len(self._unsent) + len(answer)
        self.send(answer, withheld)

    # What it hears.

    def received(self, data: bytes) -> None:
        while data and not self.is_over:
            length = int.from_bytes(data[1:5], "big")
            kind, body, data = data[:1], data[5 : 1 + length], data[1 + length :]
            assert kind in b"QX", f"the script knows no message of kind {kind!r}"
            self.queries.append(body[:-1].decode())
        if self._server.is_healed:
            self.work_off()


class _Transport(asyncio.Transport):
    """The client's end of a socket."""

    def __init__(self, loop: Loop, backend: Backend, protocol: Any) -> None:
        super().__init__()
        self._loop, self._backend, self._protocol = loop, backend, protocol
        self._has_begun = self._is_closing = self._is_lost = False

    def write(self, data: Any) -> None:
        if not self._has_begun:
            self._has_begun = True  # the startup message
        elif not self._is_closing:
            self._backend.received(bytes(data))

    def deliver(self, data: bytes) -> None:
        if not self._is_closing:
            self._protocol.data_received(data)

    def end(self) -> None:
        """The server has closed the connection."""
        if not self._is_closing:
            self._protocol.eof_received()
            self.close()

    def close(self) -> None:
        self._is_closing = self._backend.is_over = True
        self._loop.call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return not self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...
