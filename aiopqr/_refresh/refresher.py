"""The public class :class:`Refresher`. ``feed`` does the work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Self

from ..credentials import CredentialPair
from ..events import Emitter, Listener
from ..options import non_negative, positive
from ..sources import Credentials, as_source
from ..stats import RefreshStats
from .feed import Feed

_DEFAULT_INTERVAL = 60.0


class Refresher:
    """Keeps one credential pair fresh, for one pool or for several that share it.

    ``interval`` is the time in seconds between routine fetches (default: the source's own, or 60). With 0, it fetches
    only when an account is refused, when credentials expire, or when :meth:`refresh` is called. A pool then does not
    see a rotation being announced, so each rotation costs it a failed login. ``timeout`` limits one fetch, in seconds
    (default 10). ``listeners`` are called with each event.

    If a source with a single account starts to return a different account, ``keep_renamed`` keeps the previous account
    as a last resort. If the source later returns to an earlier account, the two are treated as a pair. Without
    ``keep_renamed``, connections of the previous account are replaced immediately.

    Use it as an async context manager, or call :meth:`start` and :meth:`close`. It belongs to the event loop in which
    it is used. If that loop is gone (after a second ``asyncio.run()``, or a fork), it continues in the new one. Raises
    :class:`ConfigurationError` for options that cannot work.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        interval: float | None = None,
        timeout: float = 10.0,
        keep_renamed: bool = True,
        name: str = "aiopqr",
        listeners: Iterable[Listener] = (),
    ) -> None:
        source = as_source(credentials)
        own = getattr(source, "interval", _DEFAULT_INTERVAL)
        self._feed = Feed(
            source,
            interval=non_negative("refresh_interval", own if interval is None else interval),
            timeout=positive("fetch_timeout", timeout),
            keep_renamed=keep_renamed,
            name=name,
            listeners=listeners,
        )

    def __repr__(self) -> str:
        return f"<Refresher {self.name!r} of {self._feed.kind}>"

    @property
    def name(self) -> str:
        """The name that events and log lines show."""
        return self._feed.name

    @property
    def events(self) -> Emitter:
        """The emitter of this refresher's events. Add and remove listeners here."""
        return self._feed.events

    @property
    def pair(self) -> CredentialPair:
        """The pair in use. Raises :class:`ConfigurationError` before the first fetch."""
        return self._feed.pair

    @property
    def interval(self) -> float:
        """Seconds between routine fetches."""
        return self._feed.interval

    async def start(self) -> Self:
        """Fetch the first pair, and keep it fresh from then on. A second call does nothing.

        If the fetch fails, this raises the source's error, since a service without credentials should not look healthy.
        Cancelling the call cancels the fetch. In both cases the source is closed unless another refresher uses it too,
        and you can call this again.
        """
        await self._feed.start()
        return self

    async def refresh(self) -> None:
        """Fetch now. Returns once a fetch that started after this call has succeeded, or raises its error.

        Cancelling the call does not stop the fetch.
        """
        await self._feed.refresh()

    def stats(self) -> RefreshStats:
        """Return a frozen snapshot of the counters. It contains no secrets."""
        return self._feed.stats()

    async def close(self) -> None:
        """Stop the background task, and close the source unless another refresher uses it too.

        A source that needs more than 30 seconds is abandoned. A second call does nothing.
        """
        await self._feed.close()

    def terminate(self) -> None:
        """Stop the background task without waiting for it. Use this where you cannot await :meth:`close`."""
        self._feed.terminate()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def _task(self) -> asyncio.Task[None] | None:
        return self._feed.task


def feed_of(refresher: Refresher) -> Feed:
    """The feed behind a refresher, which connectors use."""
    return refresher._feed
