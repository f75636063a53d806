"""Runs the refresh plan: one background task, one fetch at a time, and everyone told of a newer pair.

The task holds its refresher weakly while it sleeps, so that one that was dropped unclosed is collected, and says so.
"""

from __future__ import annotations

import asyncio
import time
import warnings
import weakref
from datetime import UTC, datetime
from typing import Any, Protocol, Self

from ..clock import cancel, wait_until
from ..credentials import CredentialPair, Parity
from ..errors import (
    AiopqrError,
    ConfigurationError,
    InvalidSecret,
    SourceError,
    SourceTimeout,
    describe,
    without_frames,
)
from ..events import (
    Emitter,
    Event,
    Listener,
    PairDegraded,
    Refreshed,
    RefreshFailed,
    RefreshRecovered,
    SteppedAside,
    SteppedBack,
)
from ..options import non_negative, positive
from ..sources import Credentials, CredentialSource, as_source
from ..stats import RefreshStats, SteppingAside
from .announcement import Announcement, Ended
from .plan import Need, RefreshPlan
from .quarantine import Quarantine

_DEFAULT_INTERVAL = 60.0
_CLOSE_PATIENCE = 1.0


class Subscriber(Protocol):
    """Who wants to hear of a newer pair. Held weakly."""

    def replace(self, pair: CredentialPair) -> None: ...

    def is_refused(self) -> bool:
        """Whether none of the pair's accounts works for it."""
        ...

    def heard(self, event: Event) -> None: ...


class Refresher:
    """Keeps one credential pair fresh, for one pool or for several that share it.

    ``interval`` is the time in seconds between fetches that nobody asked for (default: the source's own, or 60); 0
    fetches only when an account is refused or :meth:`refresh` is called. ``timeout`` bounds one fetch, in seconds.

    Use it as an async context manager, or call :meth:`start` and :meth:`close`.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        interval: float | None = None,
        timeout: float = 10.0,
        name: str = "aiopqr",
        listeners: tuple[Listener, ...] | list[Listener] = (),
    ) -> None:
        self._source = as_source(credentials)
        own = getattr(self._source, "interval", _DEFAULT_INTERVAL)
        self._interval = non_negative("refresh_interval", own if interval is None else interval)
        self._timeout = positive("fetch_timeout", timeout)
        self.name = name
        self.events = Emitter(listeners)
        self.quarantine = Quarantine()
        self.announcement = Announcement()
        self._subscribers: weakref.WeakSet[Subscriber] = weakref.WeakSet()
        self._pair: CredentialPair | None = None
        self._plan = RefreshPlan(self._interval, 0.0)
        self._task: asyncio.Task[None] | None = None
        self._flights: set[asyncio.Task[object]] = set()
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._ok = self._failed = 0
        self._confirmed_at = 0.0  # loop time
        self._last_success: float | None = None  # Unix time
        self._closed = False

    def __repr__(self) -> str:
        return f"<Refresher {self.name!r} of {type(self._source).__name__}>"

    @property
    def pair(self) -> CredentialPair:
        """The pair in use. Raises :class:`ConfigurationError` before the first fetch."""
        if self._pair is None:
            raise ConfigurationError(f"refresher {self.name!r} is not started: use `async with`, or await start()")
        return self._pair

    @property
    def interval(self) -> float:
        """Seconds between the fetches that nobody asks for."""
        return self._interval

    @property
    def pair_age(self) -> float:
        """Seconds since a fetch last confirmed the pair."""
        return asyncio.get_running_loop().time() - self._confirmed_at if self._pair else 0.0

    async def start(self) -> Self:
        """Fetch the first pair, and keep it fresh from then on. A second call does nothing.

        Raises what the source raised if it cannot be had: a service that starts without credentials should not seem up.
        """
        async with self._lock:
            if self._closed:
                raise AiopqrError(f"refresher {self.name!r} is closed")
            if self._pair is None:
                self._plan.request(Need.ASKED, asyncio.get_running_loop().time())
                if error := await self._fetch():
                    raise error
            if self._task is None:
                wake, loop = self._wake, asyncio.get_running_loop()
                ref: weakref.ref[Refresher] = weakref.ref(self, lambda _: None if loop.is_closed() else wake.set())
                self._task = asyncio.create_task(_keep_fresh(ref, wake), name=f"aiopqr-{self.name}-refresh")
        return self

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell ``subscriber`` of each newer pair and each event, as long as it lives."""
        self._subscribers.add(subscriber)

    def request(self, need: Need) -> None:
        """Ask for a fetch soon, without waiting for it."""
        self._plan.request(need, asyncio.get_running_loop().time())
        self._wake.set()

    async def refresh(self) -> None:
        """Fetch now. Returns after a fetch that started after this call, and raises what it raised.

        Cancelling the call leaves the fetch running.
        """
        if self._closed or self._task is None:
            raise AiopqrError(f"refresher {self.name!r} is {'closed' if self._closed else 'not started'}")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append((self._plan.request(Need.ASKED, loop.time()), waiter))
        self._wake.set()
        await waiter

    async def wait_changed(self) -> None:
        """Wait until a newer pair is in use, or a refused account may be worth a login again."""
        await self._changed.wait()

    def wake_waiting(self) -> None:
        """Let those go who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def stats(self) -> RefreshStats:
        stage, now = self.announcement.stage, asyncio.get_running_loop().time()
        aside = None
        if stage and self.announcement.avoided(now):
            aside = SteppingAside(stage.parity, stage.pending.username, now - stage.since, stage.until - now)
        return RefreshStats(
            ok=self._ok,
            failed=self._failed,
            failures_in_a_row=self._plan.failures,
            last_success=self._last_success,
            pair_age=self.pair_age if self._pair else None,
            stepping_aside=aside,
        )

    async def close(self) -> None:
        """End the background task, and close the source. A second call does nothing."""
        self.terminate()
        tasks = [task for task in (self._task, *self._flights) if task]
        if tasks:
            # A fetch may be stuck in code that ignores its cancellation; it is not waited for longer than this.
            await asyncio.wait(tasks, timeout=_CLOSE_PATIENCE)
        if aclose := getattr(self._source, "aclose", None):
            await aclose()

    def terminate(self) -> None:
        """End the background task without waiting for it, where nothing can be awaited."""
        self._closed = True
        cancel((self._task, *self._flights))
        self._settle(self._plan.started + 1, AiopqrError(f"refresher {self.name!r} is closed"))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_task", None) and not self._closed:
            warnings.warn(f"unclosed refresher {self.name!r}", ResourceWarning, source=self, stacklevel=2)

    async def _fetch(self) -> BaseException | None:
        """Make the fetch that is due, if any. What went wrong is returned, and has been reported."""
        loop = asyncio.get_running_loop()
        ticket = self._plan.start(loop.time())
        if ticket is None:
            return None
        flight = asyncio.create_task(_ask(self._source), name=f"aiopqr-{self.name}-fetch")
        self._flights.add(flight)
        flight.add_done_callback(self._flights.discard)
        try:
            await asyncio.wait({flight}, timeout=self._timeout)
        finally:
            if not flight.done():
                # Given up, and not awaited: it may be stuck. What it may still bring is never installed.
                flight.cancel()
                flight.add_done_callback(_consume)
                self._plan.failed(ticket, self._need(), loop.time())
        error = self._land(ticket, flight)
        self._settle(ticket, error)
        return error

    def _land(self, ticket: int, flight: asyncio.Task[object]) -> BaseException | None:
        now = asyncio.get_running_loop().time()
        error: BaseException
        if not flight.done():
            error = SourceTimeout(f"{_kind(self._source)} did not answer within {self._timeout:g} s")
        elif flight.cancelled():
            error = SourceError(f"{_kind(self._source)} cancelled its own fetch")
        elif exc := flight.exception():
            error = without_frames(exc)
        elif not isinstance(pair := flight.result(), CredentialPair):
            error = InvalidSecret(f"{_kind(self._source)} must return a CredentialPair, not {type(pair).__name__}")
        else:
            failures = self._plan.failures
            self._install(pair, now)
            self._plan.succeeded(ticket, self._need(), now, within=pair.refresh_in)
            if failures:
                self._tell(RefreshRecovered(name=self.name, failures=failures))
            return None
        self._failed += 1
        self._plan.failed(ticket, self._need(), now)
        failures = self._plan.failures
        # A source that is polled every second may fail for days: after the first, ever more rarely into the log.
        self._tell(
            RefreshFailed(
                name=self.name,
                error=describe(error),
                failures=failures,
                retry_in=max(self._plan.due - now, 0.0),
                pair_age=self.pair_age,
            ),
            logged=failures & (failures - 1) == 0,
        )
        return error

    def _install(self, pair: CredentialPair, now: float) -> None:
        before, self._pair = self._pair, pair
        self._ok += 1
        self._confirmed_at, self._last_success = now, time.time()
        self._announce(pair, now)
        if pair == before:
            return
        if pair.missing and (before is None or before.missing is None):
            self._tell(PairDegraded(name=self.name, missing=pair.missing))
        if before is None:
            return
        for subscriber in tuple(self._subscribers):
            subscriber.replace(pair)
        self.wake_waiting()
        changed = tuple(parity for parity in Parity if pair[parity] != before[parity])
        self._tell(Refreshed(name=self.name, changed=changed, pending=pair.pending_parity))

    def _announce(self, pair: CredentialPair, now: float) -> None:
        age = (datetime.now(UTC) - pair.pending_since).total_seconds() if pair.pending_since else 0.0
        for step in self.announcement.hear(pair, now, age):
            stage = step.stage if isinstance(step, Ended) else step
            account: dict[str, Any] = {"name": self.name, "parity": stage.parity, "username": stage.pending.username}
            if isinstance(step, Ended):
                self._tell(SteppedBack(**account, after=now - stage.since, closed=step.closed))
            else:
                self._tell(SteppedAside(**account, ends_in=stage.until - now))

    def _tell(self, event: Event, *, logged: bool = True) -> None:
        if logged:
            self.events.emit(event)
        else:
            self.events.tell(event)
        for subscriber in tuple(self._subscribers):
            subscriber.heard(event)

    def _need(self) -> Need:
        if any(subscriber.is_refused() for subscriber in self._subscribers):
            return Need.STARVED
        if self._pair and any(c in self.quarantine for c in (self._pair.odd, self._pair.even) if c):
            return Need.REFUSED
        return Need.NONE

    def _settle(self, ticket: int, error: BaseException | None) -> None:
        """Let go those who wait for a fetch up to this one."""
        settled = [waiter for wanted, waiter in self._waiters if wanted <= ticket and not waiter.done()]
        self._waiters = [(wanted, waiter) for wanted, waiter in self._waiters if wanted > ticket]
        for waiter in settled:
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


async def _keep_fresh(ref: weakref.ref[Refresher], wake: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while True:
        wake.clear()
        if (refresher := ref()) is None:
            return
        due = refresher._plan.due
        if due <= loop.time():
            async with refresher._lock:
                await refresher._fetch()
            continue
        del refresher
        await wait_until(due, wake)


async def _ask(source: CredentialSource) -> object:
    return await source.fetch()


def _consume(flight: asyncio.Task[object]) -> None:
    if not flight.cancelled():
        flight.exception()


def _kind(source: CredentialSource) -> str:
    return f"the source ({type(source).__name__})"
