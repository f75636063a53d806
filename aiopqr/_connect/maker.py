"""The implementation of :class:`Connector`, which pools and engines use directly.

It makes the connections, and remembers which account each belongs to.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import asyncpg

from .._login import KeyCache, disown
from .._refresh import Attempt, Feed
from ..credentials import CredentialPair, Parity
from ..errors import ConfigurationError, PoolClosing
from ..events import Emitter, Event, Listener
from ..options import positive
from ..stats import AccountStats, Histogram
from .arguments import ArgumentReader, Arguments
from .attempts import Connect
from .logins import Logins
from .state import ConnectorState

CONNECT_TIMEOUT = 60.0  # asyncpg's own default


@dataclass(frozen=True, slots=True)
class Made:
    """A connection, or whatever a user's own ``connect=`` returned, and the login that made it.

    ``session_attribute`` is the ``target_session_attrs`` that its server had to satisfy; "any" for a user's own
    ``connect=``.
    """

    con: Any
    attempt: Attempt
    session_attribute: str


class Maker:
    """Makes connections with the accounts of the pair that ``feed`` keeps fresh.

    ``connect`` is called instead of asyncpg's. ``keys`` caches the SCRAM keys of the passwords in use.
    """

    def __init__(
        self,
        feed: Feed,
        connect: Callable[..., Awaitable[Any]] | None,
        keys: KeyCache | None,
        name: str,
        listeners: Iterable[Listener],
    ) -> None:
        self.name = name
        self.events = Emitter(listeners)
        self._feed = feed
        self._own_connect = connect
        self._keys = keys
        self._state: ConnectorState | None = None
        self._attempts: weakref.WeakKeyDictionary[Any, Attempt] = weakref.WeakKeyDictionary()
        self._reader = ArgumentReader()
        self._logins = Logins(name)
        self.is_closed = False
        _alive.add(self)

    async def start(self) -> None:
        """See :meth:`Connector.start`."""
        if self._state is None:
            self._feed.subscribe(self)
            await self._feed.start()
        if self._state is None:  # another task may have started it by now
            connect = self._own_connect
            self._state = ConnectorState(self.name, self.events, self._feed, connect, self._keys, self._logins)
            if self._keys is not None:
                self._keys.keep_only(self._feed.pair.credentials())

    async def connect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Made:
        """See :meth:`Connector.connect`. The arguments must be complete and already checked."""
        if self.is_closed:
            raise PoolClosing(f"{self.name}: the connector is closed")
        self._feed.revive()
        kwargs = {**kwargs}
        timeout = kwargs.pop("timeout", CONNECT_TIMEOUT)
        if timeout is not None:
            timeout = positive("timeout", timeout)
        endpoint = self._feed.pair.endpoint
        if self._own_connect is None:
            self._feed.check_connect(args, kwargs)
            arguments = self._reader.read(args, kwargs, endpoint, asyncio.get_running_loop().time())
        else:
            arguments = Arguments.for_own_connect(args, kwargs, endpoint)
        connected = await Connect(self._started, arguments, timeout).run(lambda: self._probe(arguments))
        inner = _unwrapped(connected.con)
        if isinstance(inner, asyncpg.Connection):  # a user's connect= may return anything
            self._attempts[inner] = connected.attempt
        return Made(connected.con, connected.attempt, arguments.session_attribute)

    def check_roles(self) -> None:
        """For a minute, ask the server of each new connection whether it accepts writes, if it has to."""
        self._started.check_roles()

    def limit_extra_logins(self, room: Callable[[], float]) -> None:
        """From now on, allow at most ``room()`` sockets in addition to one for each connect."""
        self._started.logins.room = room

    @property
    def is_started(self) -> bool:
        """Whether it has credentials to connect with."""
        return self._state is not None

    @property
    def connect_time(self) -> Histogram:
        """How long successful logins took."""
        return self._started.counts.connect_time

    @property
    def last_failure(self) -> BaseException | None:
        """Why connecting fails: either all credentials have expired, or the error of the latest login if it failed."""
        return (self._state.expired() or self._state.last_failure) if self._state else None

    def attempt_of(self, con: Any) -> Attempt | None:
        """The login that made this connection."""
        return self._attempts.get(_unwrapped(con))

    def is_superseded(self, attempt: Attempt) -> bool:
        """Whether the login used an outdated password."""
        return self._started.alternator.is_superseded(attempt, asyncio.get_running_loop().time())

    def has_left(self, attempt: Attempt) -> bool:
        """Whether the credentials no longer name the account of this login."""
        return self._started.alternator.has_left(attempt)

    def ends_at(self, attempt: Attempt) -> float:
        """When the sessions of this login's account end, in loop time; infinity if they outlive their password."""
        return self._started.alternator.ends_at(attempt)

    def lasts_until(self) -> float:
        """When a session that begins now must end at the latest, in loop time, with the account that lasts longest."""
        return self._started.alternator.lasts_until(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Make no more connections, and cancel the logins in flight."""
        self.is_closed = True
        self._logins.cancel()

    async def wait_ended(self) -> None:
        """Wait until the logins that were cancelled have ended."""
        await self._logins.wait_ended()

    # Called by the feed: this is one of its subscribers.

    def replace(self, pair: CredentialPair) -> None:
        if self._state:
            self._state.replace(pair)

    def is_refused(self) -> bool:
        """Whether every account of the pair is refused."""
        return self._state is not None and self._state.alternator.is_refused(asyncio.get_running_loop().time())

    def on_event(self, event: Event) -> None:
        self.events.forward(event)

    def stats_fields(self) -> dict[str, Any]:
        """The fields of :class:`ConnectorStats`, which a pool's snapshot has too."""
        state, now = self._started, asyncio.get_running_loop().time()
        pair = state.alternator.pair
        alive = [attempt.parity for con, attempt in list(self._attempts.items()) if not con.is_closed()]
        accounts = {}
        for parity in Parity:
            credential, counts = pair[parity], state.counts.accounts[parity]
            since = state.alternator.refused_since(credential) if credential else None
            accounts[parity] = AccountStats(
                username=credential.username if credential else None,
                open=alive.count(parity),
                opened=counts.opened,
                refused=counts.refused,
                refused_for=None if since is None else now - since,
                expires_in=state.alternator.expires_in(credential, now) if credential else None,
            )
        return {
            "name": self.name,
            "accounts": accounts,
            "fallbacks": state.counts.fallbacks,
            "probes": state.counts.probes,
            "outages": state.counts.outages,
            "failed": state.counts.failed,
            "connect_time": state.counts.connect_time.snapshot(),
            "refresh": self._feed.stats(),
            "all_refused": state.alternator.is_refused(now),
            "degraded": pair.missing is not None,
        }

    @property
    def _started(self) -> ConnectorState:
        if self._state is None:
            raise ConfigurationError(f"connector {self.name!r} is not started: use `async with`, or await start()")
        return self._state

    def _probe(self, arguments: Arguments) -> None:
        """If a probe of a refused account is due, start it in the background."""
        state = self._started
        if attempt := state.alternator.probe(asyncio.get_running_loop().time()):
            state.probe(attempt, arguments)


def _unwrapped(con: Any) -> Any:
    """The connection itself. Agents such as ddtrace wrap it in a proxy (by wrapt)."""
    while (inner := getattr(con, "__wrapped__", None)) is not None:
        con = inner
    return con


_alive: weakref.WeakSet[Maker] = weakref.WeakSet()
_inherited: list[Any] = []  # never collected, which would touch the parent's sockets


def _leave_to_parent() -> None:
    """In the child of a fork, mark the connections as closed without touching them, since they belong to the parent.

    Closing one would remove its socket from the parent's event loop, whose epoll object the child shares.
    """
    for maker in tuple(_alive):
        _inherited.append(maker)
        for con in tuple(maker._attempts):
            disown(con)
            _inherited.append(con)


os.register_at_fork(after_in_child=_leave_to_parent)
