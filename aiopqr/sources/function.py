"""Two sources without a store: a fixed pair, and a user's async function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from ..credentials import CredentialPair
from ..errors import ConfigurationError


class FixedSource:
    """Always returns the same pair. It is never polled."""

    interval = 0.0

    def __init__(self, pair: CredentialPair) -> None:
        self._pair = pair

    async def fetch(self) -> CredentialPair:
        """Return the pair."""
        return self._pair


class CallableSource:
    """Calls a user's async function every ``interval`` seconds (default 60), and when newer credentials are needed.

    If the function raises, that is reported as an event, and pools keep the credentials they have.
    """

    def __init__(self, fetch: Callable[[], Awaitable[CredentialPair]], *, interval: float = 60.0) -> None:
        self._fetch = fetch
        self.interval = interval

    async def fetch(self) -> CredentialPair:
        """Call the function and return its result. Raises whatever it raises."""
        answer = self._fetch()
        if not inspect.isawaitable(answer):
            raise ConfigurationError("credentials: the callable must be an async function")
        return await answer
