"""The two sources that need no store of their own: a fixed pair, and a user's async function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from ..credentials import CredentialPair
from ..errors import ConfigurationError


class FixedSource:
    """Always the same pair. Nothing is polled."""

    interval = 0.0

    def __init__(self, pair: CredentialPair) -> None:
        self._pair = pair

    async def fetch(self) -> CredentialPair:
        return self._pair


class CallableSource:
    """A user's async function as a source, polled every ``interval`` seconds."""

    def __init__(self, fetch: Callable[[], Awaitable[CredentialPair]], *, interval: float = 60.0) -> None:
        self._fetch = fetch
        self.interval = interval

    async def fetch(self) -> CredentialPair:
        answer = self._fetch()
        if not inspect.isawaitable(answer):
            raise ConfigurationError("credentials: the callable must be an async function")
        return await answer
