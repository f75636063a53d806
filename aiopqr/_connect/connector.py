"""``connect()`` with a pair of accounts: what a pool is built on, and what is used without one (LISTEN, migrations)."""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, Self, Unpack

import asyncpg

from .._login import KeyCache, disown
from .._refresh import Attempt, Refresher, feed_of
from ..credentials import CredentialPair, Parity
from ..errors import ConfigurationError, PoolClosing
from ..events import Emitter, Event, Listener
from ..options import OneConnectArguments, check_connect_arguments, given, positive
from ..sources import Credentials
from ..stats import AccountStats, ConnectorStats, Histogram
from .arguments import Arguments
from .attempts import Connect
from .logins import Logins
from .state import ConnectorState

CONNECT_TIMEOUT = 60.0  # asyncpg's own default


class Connector:
    """Makes asyncpg connections with the accounts of a pair in turn.

    Takes what :func:`asyncpg.connect` takes, except ``user`` and ``password``. ``credentials`` is a source, an async
    callable, a fixed pair or a shared :class:`Refresher`. ``connect`` is called in asyncpg's place, with the chosen
    ``user=`` and ``password=`` (a callable, as asyncpg takes it, which works while that call runs). ``scram_cache``
    keeps the SCRAM keys of the passwords in use, so that they are derived once. ``require_auth`` and
    ``channel_binding``, also in the DSN, say what the server may ask for, as in libpq; one that asks for more raises
    :class:`UntrustedServer`, and gets neither account's password.

    Use it as an async context manager. It closes the refresher that it made, never one that you passed in. Close the
    connections yourself.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        credentials: Credentials | Refresher,
        connect: Callable[..., Awaitable[Any]] | None = None,
        refresh_interval: float | None = None,
        fetch_timeout: float = 10.0,
        keep_renamed: bool = True,
        scram_cache: bool = True,
        require_auth: str | None = None,
        channel_binding: Literal["disable", "prefer", "require"] | None = None,
        name: str = "aiopqr",
        listeners: Iterable[Listener] = (),
        **connect_arguments: Unpack[OneConnectArguments],
    ) -> None:
        self._args = () if dsn is None else (dsn,)
        kept = given(require_auth=require_auth, channel_binding=channel_binding)
        self._kwargs: dict[str, Any] = {**connect_arguments, **kept}
        check_connect_arguments(self._args, self._kwargs, connect=connect)
        self.name = name
        self.events = Emitter(listeners)
        self._own_connect = connect
        self._keys = KeyCache() if scram_cache else None
        self._owns_refresher = not isinstance(credentials, Refresher)
        if isinstance(credentials, Refresher):
            if refresh_interval is not None:
                raise ConfigurationError("refresh_interval belongs to the Refresher that is given as credentials")
            if not keep_renamed:
                raise ConfigurationError("keep_renamed belongs to the Refresher that is given as credentials")
            self.refresher = credentials
        else:
            self.refresher = Refresher(
                credentials, interval=refresh_interval, timeout=fetch_timeout, keep_renamed=keep_renamed, name=name
            )
        self._feed = feed_of(self.refresher)
        self._state: ConnectorState | None = None
        self._attempts: weakref.WeakKeyDictionary[Any, Attempt] = weakref.WeakKeyDictionary()
        self._logins = Logins(name)
        #: What the last connect's server had to be, as far as aiopqr knows: with a ``connect`` of your own, "any".
        self.target_session_attrs = "any"
        self._closed = False
        _alive.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    async def start(self) -> Self:
        """Fetch the first credentials. Raises what the source raised. A second call does nothing."""
        if self._state is None:
            self._feed.subscribe(self)
            await self.refresher.start()
        if self._state is None:  # another task may have started it meanwhile
            connect = self._own_connect
            self._state = ConnectorState(self.name, self.events, self._feed, connect, self._keys, self._logins)
            if self._keys is not None:
                self._keys.keep_only(self.refresher.pair.credentials())
        return self

    async def connect(
        self, *args: Any, **connect_arguments: Unpack[OneConnectArguments]
    ) -> asyncpg.Connection[asyncpg.Record]:
        """An ordinary asyncpg connection, made with the account whose turn it is, or with the other one.

        Arguments given here replace the connector's own. ``timeout`` is in seconds (default 60) and covers everything:
        the fallback to the other account, waiting for newer credentials, and waiting for a server that is down. A login
        that is silent for a second goes on, while another is tried with the next host or account.

        Raises :class:`CredentialsRefused` if all accounts stay refused and :class:`ConnectTimeout` if the server stays
        down, both only after ``timeout``. Raises :class:`ConfigurationError` if no database is named, or no host where
        none answers on this machine, and any other error of the driver, at once. Cancelling it gives up its logins.
        """
        if args or connect_arguments:
            check_connect_arguments(args, connect_arguments, connect=self._own_connect)
        if self._closed:
            raise PoolClosing(f"{self.name}: the connector is closed")
        self._feed.revive()
        kwargs: dict[str, Any] = {**self._kwargs, **connect_arguments}
        if self._own_connect is None:
            self._feed.check_connect(args or self._args, kwargs)
        timeout = kwargs.pop("timeout", CONNECT_TIMEOUT)
        if timeout is not None:
            timeout = positive("timeout", timeout)
        read = Arguments.for_own_connect if self._own_connect else Arguments.for_asyncpg
        arguments = read(args or self._args, kwargs, self.refresher.pair.endpoint)
        self.target_session_attrs = arguments.session_attribute
        made = await Connect(self._started, arguments, timeout).run(lambda: self._probe(arguments))
        inner = _unwrapped(made.con)
        if isinstance(inner, asyncpg.Connection):  # a user's connect= may return anything
            self._attempts[inner] = made.attempt
        return made.con  # type: ignore[no-any-return]

    def be_wary(self) -> None:
        """For a minute, do not believe a new connection's server that it takes writes, where it has to, but ask it."""
        self._started.be_wary()

    def limit_extra_logins(self, room: Callable[[], float]) -> None:
        """From now on, there are at most ``room()`` sockets besides those of the connects themselves. For pools."""
        self._started.logins.room = room

    async def refresh(self) -> None:
        """Fetch now: see :meth:`Refresher.refresh`."""
        await self.refresher.refresh()

    @property
    def pair(self) -> CredentialPair:
        """The pair in use."""
        return self.refresher.pair

    @property
    def last_failure(self) -> BaseException | None:
        """Why there is no login: all credentials have expired; or else what the last one failed with, if none has
        succeeded since.
        """
        return (self._state.expired() or self._state.last_failure) if self._state else None

    def attempt_of(self, con: Any) -> Attempt | None:
        """The login that made this connection."""
        return self._attempts.get(_unwrapped(con))

    def is_superseded(self, con: Any) -> bool:
        """Whether the connection was made with a password that is no longer the newest."""
        attempt = self.attempt_of(con)
        now = asyncio.get_running_loop().time()
        return attempt is not None and self._started.alternator.is_superseded(attempt, now)

    def has_left(self, attempt: Attempt) -> bool:
        """Whether the credentials no longer name the account of this login."""
        return self._started.alternator.has_left(attempt)

    def ends_at(self, attempt: Attempt) -> float:
        """When the sessions of this login's account end, in loop time; infinity if they outlive their password."""
        return self._started.alternator.ends_at(attempt)

    def lasts_until(self) -> float:
        """When sessions that begin now end, in loop time, if they are of the account that lasts longest."""
        return self._started.alternator.lasts_until(asyncio.get_running_loop().time())

    def stats(self) -> ConnectorStats:
        """A frozen snapshot. No secret is in it."""
        return ConnectorStats(**self.stats_fields())

    async def close(self) -> None:
        """End the background work, and close the refresher if it is the connector's own. A second call does nothing."""
        self._stop()
        await self._logins.wait_ended()
        if self._owns_refresher:
            await self.refresher.close()

    def terminate(self) -> None:
        """As :meth:`close`, where nothing can be awaited."""
        self._stop()
        if self._owns_refresher:
            self.refresher.terminate()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_state", None) and not self._closed:
            warnings.warn(f"unclosed connector {self.name!r}", ResourceWarning, source=self, stacklevel=2)
            self.terminate()

    # What the refresher calls on its subscribers.

    def replace(self, pair: CredentialPair) -> None:
        if self._state:
            self._state.replace(pair)

    def is_refused(self) -> bool:
        """Whether every account of the pair is refused."""
        return self._state is not None and self._state.alternator.is_refused(asyncio.get_running_loop().time())

    def heard(self, event: Event) -> None:
        self.events.tell(event)

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
            "refresh": self.refresher.stats(),
            "all_refused": state.alternator.is_refused(now),
            "degraded": pair.missing is not None,
        }

    @property
    def patience(self) -> float:
        """How many seconds a login may take before it counts as hanging: four times the slowest of the last ten."""
        return self._started.pace.patience

    @property
    def connect_time(self) -> Histogram:
        """How long successful logins took. Add an observer to get each measurement."""
        return self._started.counts.connect_time

    @property
    def _started(self) -> ConnectorState:
        if self._state is None:
            raise ConfigurationError(f"connector {self.name!r} is not started: use `async with`, or await start()")
        return self._state

    def _stop(self) -> None:
        self._closed = True
        self._logins.cancel()

    def _probe(self, arguments: Arguments) -> None:
        """While accounts work, find out in the background whether a refused one does again."""
        state = self._started
        now = asyncio.get_running_loop().time()
        if not state.alternator.is_refused(now) and (attempt := state.alternator.probe(now)):
            state.probe(attempt, arguments)


def _unwrapped(con: Any) -> Any:
    """The connection itself: agents such as ddtrace put a proxy (of wrapt) around it."""
    while (inner := getattr(con, "__wrapped__", None)) is not None:
        con = inner
    return con


_alive: weakref.WeakSet[Connector] = weakref.WeakSet()
_inherited: list[Any] = []  # never collected, which would touch the parent's sockets


def _leave_to_parent() -> None:
    """After a fork, in the child: the connections stay the parent's, so let them count as closed, without a word.

    Closing one would take its socket out of the parent's event loop, whose epoll object the child shares.
    """
    for connector in tuple(_alive):
        _inherited.append(connector)
        for con in tuple(connector._attempts):
            disown(con)
            _inherited.append(con)


os.register_at_fork(after_in_child=_leave_to_parent)
