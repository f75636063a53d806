"""A credentials source that a test controls: it can publish, delay, fail, lie or hang."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from ..credentials import CredentialPair


class _Hang:
    def __repr__(self) -> str:
        return "HANG"


#: An answer that never comes, for :meth:`ScriptedSource.then`.
HANG = _Hang()


class ScriptedSource:
    """A source for tests. It answers with :attr:`pair` unless it is scripted otherwise.

    ``interval`` is the time in seconds between routine fetches. Like a real store, the source reads its value when a
    fetch *begins*: a fetch that is delayed by :attr:`latency` or :attr:`gate` returns what was published before it
    began.
    """

    def __init__(self, pair: CredentialPair, *, interval: float = 60.0, latency: float = 0.0) -> None:
        self.interval = interval
        #: How many seconds each fetch takes.
        self.latency = latency
        #: If this is an event, fetches wait until it is set.
        self.gate: asyncio.Event | None = None
        #: If this is not None, each fetch raises it.
        self.error: BaseException | None = None
        #: How many fetches have begun, and how many of them have ended, by an answer, an error or a cancellation.
        self.fetches = 0
        self.ended = 0
        self._pair: Any = pair
        self._due: list[tuple[float, Any]] = []
        self._script: deque[Any] = deque()
        self._progress = asyncio.Event()

    def __repr__(self) -> str:
        return f"<ScriptedSource: {self.fetches} fetches>"

    @property
    def pair(self) -> CredentialPair:
        """What the store holds now. Assign another pair to publish it, or anything else to publish nonsense."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            self._pair = self._due.pop(0)[1]
        pair: CredentialPair = self._pair
        return pair

    @pair.setter
    def pair(self, pair: Any) -> None:
        self._due.clear()
        self._pair = pair

    def publish(self, pair: Any, *, after: float = 0.0) -> None:
        """Make the store show ``pair`` in ``after`` seconds."""
        self._due.append((time.monotonic() + after, pair))
        self._due.sort(key=lambda due: due[0])

    def then(self, *answers: Any) -> None:
        """Script the next fetches, one each: an exception is raised, :data:`HANG` hangs, anything else is returned."""
        self._script.extend(answers)

    async def fetch(self) -> CredentialPair:
        """Give the next scripted answer. If there is none, raise :attr:`error` if it is set, or return :attr:`pair`."""
        answer = self._script.popleft() if self._script else self.error or self.pair
        self.fetches += 1
        self._notify()
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.latency:
                await asyncio.sleep(self.latency)
            if answer is HANG:
                await asyncio.get_running_loop().create_future()
            if isinstance(answer, BaseException):
                raise answer
            pair: CredentialPair = answer
            return pair
        finally:
            self.ended += 1
            self._notify()

    async def wait_begun(self, count: int) -> None:
        """Wait until ``count`` fetches have begun since the source was made."""
        while self.fetches < count:
            await self._progress.wait()

    async def wait_fetched(self, count: int) -> None:
        """Wait until ``count`` fetches have ended since the source was made."""
        while self.ended < count:
            await self._progress.wait()

    def _notify(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()
