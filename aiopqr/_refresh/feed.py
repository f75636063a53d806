"""Carries out the refresh plan: one background task, one fetch at a time, and a notification for each newer pair.

While the task sleeps, it holds only a weak reference to its feed. So a refresher that nobody closed is still collected,
and emits a ResourceWarning. An unexpected error in the task is logged, and the task carries on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
import weakref
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from .._failures import report, reporting
from ..clock import call_in, wait_until
from ..credentials import CredentialPair
from ..errors import (
    AiopqrError,
    ConfigurationError,
    InvalidSecret,
    describe,
)
from ..events import (
    Emitter,
    Event,
    Listener,
    RefreshFailed,
    RefreshRecovered,
)
from ..sources import CredentialSource
from ..stats import RefreshStats, SteppingAside
from . import reports
from .announcement import Announcement
from .expiry import Expiry
from .fetching import close, fetched
from .loops import LoopState
from .plan import Need, RefreshPlan
from .quarantine import Quarantine
from .renaming import Renaming
from .subscribers import Subscriber, Subscribers

_CLOSE_PATIENCE = 1.0
_RECOVERY_PAUSE = 1.0

# The feeds in use, in all threads. There is no lock, because a forked child could find it locked and never released.
_open: weakref.WeakValueDictionary[int, Feed] = weakref.WeakValueDictionary()


class Feed:
    """The implementation of :class:`~aiopqr.Refresher`, for connectors. ``interval`` and ``timeout`` are in seconds."""

    def __init__(
        self,
        source: CredentialSource,
        *,
        interval: float,
        timeout: float,
        keep_renamed: bool,
        name: str,
        listeners: Iterable[Listener],
    ) -> None:
        self._source = source
        self.interval = interval
        self._timeout = timeout
        self.name = name
        self.events = Emitter(listeners)
        self.quarantine = Quarantine()
        self.announcement = Announcement()
        self.expiry = Expiry()
        self._renaming = Renaming(keeps=keep_renamed)
        self._expiries = reports.Expiries(name)
        self._subscribers = Subscribers(name)
        self._pair: CredentialPair | None = None
        self._plan = RefreshPlan(self.interval, 0.0)
        self._state: LoopState | None = None
        self._ok = self._failed = 0
        self._confirmed_at = 0.0  # loop time
        self._last_success: float | None = None  # Unix time
        self.last_error: str | None = None  # of the last fetch, if it failed
        self._closed = False
        self._is_source_closed = False

    def __repr__(self) -> str:
        return f"<Feed {self.name!r} of {type(self._source).__name__}>"

    @property
    def kind(self) -> str:
        """The class of the source."""
        return type(self._source).__name__

    @property
    def task(self) -> asyncio.Task[None] | None:
        return self._state.task if self._state else None

    @property
    def pair(self) -> CredentialPair:
        """The pair in use. Raises :class:`ConfigurationError` before the first fetch."""
        if self._pair is None:
            raise ConfigurationError(f"refresher {self.name!r} is not started: use `async with`, or await start()")
        return self._pair

    @property
    def pair_age(self) -> float:
        """Seconds since a fetch last confirmed the pair."""
        return asyncio.get_running_loop().time() - self._confirmed_at if self._pair else 0.0

    async def start(self) -> None:
        """See :meth:`Refresher.start`."""
        state = self._here()
        async with state.lock:
            if self._closed:
                raise AiopqrError(f"refresher {self.name!r} is closed")
            _open[id(self)] = self
            if self._pair is None:
                self._is_source_closed = False
                self._plan.request(Need.ASKED, asyncio.get_running_loop().time())
                try:
                    if error := await self._fetch(state):
                        raise error
                except BaseException:  # the caller may have nothing to call close() on
                    with reporting("%s: the source could not be closed", self.name):
                        await self._close_source()
                    raise
        self._here()

    def check_connect(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Let the source reject connect arguments that cannot work with its credentials."""
        if check := getattr(self._source, "check_connect", None):
            check(args, kwargs)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Notify ``subscriber`` of each newer pair and each event, for as long as it lives."""
        self._subscribers.add(subscriber)

    def request(self, need: Need) -> None:
        """Ask for a fetch soon, without waiting for it."""
        state = self._here()
        self._plan.request(need, asyncio.get_running_loop().time())
        state.wake.set()

    async def refresh(self) -> None:
        """See :meth:`Refresher.refresh`."""
        if self._closed or self._pair is None:
            raise AiopqrError(f"refresher {self.name!r} is {'closed' if self._closed else 'not started'}")
        loop, state = asyncio.get_running_loop(), self._here()
        waiter: asyncio.Future[None] = loop.create_future()
        state.waiters.append((self._plan.request(Need.ASKED, loop.time()), waiter))
        state.wake.set()
        await waiter

    async def wait_changed(self) -> None:
        """Wait until there is a newer pair, or until trying a refused account again may be worthwhile."""
        await self._here().changed.wait()

    def wake_waiting(self) -> None:
        """Wake everything that waits in :meth:`wait_changed`."""
        state = self._here()
        state.changed.set()
        state.changed = asyncio.Event()

    def revive(self) -> None:
        """Start afresh after the event loop is gone, or after somebody has cancelled the task."""
        self._here()

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
        """See :meth:`Refresher.close`."""
        self.terminate()
        await self._close_source()

    async def _close_source(self) -> None:
        """Wait for the tasks to end, and close the source unless another feed uses it or this one has closed it."""
        tasks = self._state.tasks if self._state and self._state.is_current else []
        if tasks:
            # The timeout is for a fetch that is stuck in code that ignores its cancellation.
            await asyncio.wait(tasks, timeout=_CLOSE_PATIENCE)
        if self._is_last_user() and not self._is_source_closed:
            self._is_source_closed = True
            await close(self._source, self.name)

    def _is_last_user(self) -> bool:
        """Stop using the source, and return whether nobody else uses it."""
        _open.pop(id(self), None)
        others = (feed for ref in _open.valuerefs() if (feed := ref()))
        return not any(feed._source is self._source for feed in others)

    def terminate(self) -> None:
        """Cancel the background task without waiting for it to end. For code that cannot await."""
        self._closed = True
        if self._state:
            self._state.cancel()
            self._state.settle(self._plan.started + 1, AiopqrError(f"refresher {self.name!r} is closed"))

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state and state.task and not self._closed:
            warnings.warn(f"unclosed refresher {self.name!r}", ResourceWarning, source=self, stacklevel=2)

    def _here(self) -> LoopState:
        """The state for the running loop. Starts the task if there is a pair to keep fresh."""
        state = self._state
        if state is None or not state.is_current:
            if state:
                state.drop(self.name)
                self._plan.abandoned(asyncio.get_running_loop().time())
            self._state = state = LoopState()
        if self._pair and not self._closed and not state.is_running:
            wake, loop = state.wake, asyncio.get_running_loop()
            ref: weakref.ref[Feed] = weakref.ref(self, lambda _: call_in(loop, wake.set))
            state.task = asyncio.create_task(_keep_fresh(ref, state), name=f"aiopqr-{self.name}-refresh")
        return state

    async def _fetch(self, state: LoopState) -> BaseException | None:
        """Fetch if a fetch is due. Reports an error as an event, and returns it."""
        loop = asyncio.get_running_loop()
        ticket = self._plan.start(loop.time())
        if ticket is None:
            return None
        try:
            outcome = self._completed(await fetched(self._source, self._timeout, self.name, state.flights))
            events = self._record(ticket, outcome, loop.time())
        except BaseException as exc:  # a cancellation, or a bug
            self._plan.failed(ticket, Need.NONE, loop.time())
            state.settle(ticket, exc if isinstance(exc, Exception) else None)
            raise
        error = outcome if isinstance(outcome, BaseException) else None
        state.settle(ticket, error)
        for event in events:
            self._emit(event)
        return error

    def _completed(self, outcome: CredentialPair | BaseException) -> CredentialPair | BaseException:
        """The outcome; a pair is completed with the account that the store named before, if that helps."""
        with contextlib.suppress(InvalidSecret):  # the pending password is for a third account
            if isinstance(outcome, CredentialPair):
                return self._renaming.completed(outcome)
        return outcome

    def _record(self, ticket: int, outcome: CredentialPair | BaseException, now: float) -> list[Event]:
        """Record the outcome of a fetch, and return the events to report."""
        if isinstance(outcome, CredentialPair):
            failures, self.last_error = self._plan.failures, None
            events = self._install(outcome, now)
            within, remaining = outcome.refresh_in, self.expiry.remaining(outcome, now)
            self._plan.succeeded(ticket, self._need(now), now, within=within, remaining=remaining)
            events += self._expiries.expired(self._pair, self.expiry, now)
            return [*events, RefreshRecovered(name=self.name, failures=failures)] if failures else events
        self._failed += 1
        self._plan.failed(ticket, self._need(now), now)
        retry_in = max(self._plan.due - now, 0.0)
        self.last_error = why = describe(outcome)
        failures = self._plan.failures
        age = self.pair_age if self._pair else None
        return [
            *self._expiries.expired(self._pair, self.expiry, now),
            RefreshFailed(name=self.name, error=why, failures=failures, retry_in=retry_in, pair_age=age),
        ]

    def _install(self, pair: CredentialPair, now: float) -> list[Event]:
        before, self._pair = self._pair, pair
        self._ok += 1
        self._confirmed_at, self._last_success = now, time.time()
        self.expiry.update(pair, now, datetime.now(UTC))
        events = list(reports.staging(self.name, self.announcement, pair, now))
        if before is not None and reports.has_changed(before, pair):
            self._subscribers.replace(pair)
            self.wake_waiting()
        return [*events, *reports.news(self.name, before, pair, self.expiry.remaining(pair, now))]

    def _emit(self, event: Event) -> None:
        # A source that is polled every second may fail for days, so log only failures 1, 2, 4, 8 and so on.
        if isinstance(event, RefreshFailed) and event.failures & (event.failures - 1):
            self.events.forward(event)
        else:
            self.events.emit(event)
        self._subscribers.notify(event)

    def _need(self, now: float) -> Need:
        if self._subscribers.is_any_refused():
            return Need.STARVED
        accounts = [account for account in (self._pair.odd, self._pair.even) if account] if self._pair else []
        if any(account in self.quarantine or self.expiry.has_passed(account, now) for account in accounts):
            return Need.REFUSED
        return Need.NONE


async def _keep_fresh(ref: weakref.ref[Feed], state: LoopState) -> None:
    loop = asyncio.get_running_loop()
    while True:
        state.wake.clear()
        if (feed := ref()) is None:
            return
        name, due = feed.name, feed._plan.due
        try:
            if due <= loop.time():
                async with state.lock:
                    await feed._fetch(state)
            else:
                del feed
                await wait_until(due, state.wake)
        except Exception:
            feed = None
            report("%s: refreshing credentials failed unexpectedly and will be retried. Please report this bug", name)
            await asyncio.sleep(_RECOVERY_PAUSE)
