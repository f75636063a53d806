"""The public class :class:`Connector`: connects with a pair of accounts, for LISTEN, migrations and the like.

``maker`` does the work, and pools use it too.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, Self, Unpack

import asyncpg

from .._login import KeyCache
from .._refresh import Refresher, feed_of
from ..credentials import CredentialPair
from ..errors import ConfigurationError
from ..events import Emitter, Listener
from ..options import OneConnectArguments, check_connect_arguments, given
from ..sources import Credentials
from ..stats import ConnectorStats, Histogram
from .maker import Maker


class Connector:
    """Makes asyncpg connections with the accounts of a pair in turn. Use it where a pool does not fit.

    It takes the arguments of :func:`asyncpg.connect`, except ``user`` and ``password``. ``credentials`` is a source, an
    async callable, a fixed pair or a shared :class:`Refresher`. ``connect`` is called instead of asyncpg's, with the
    chosen ``user=`` and ``password=`` (a callable, which asyncpg accepts too; it only works during that call).
    ``scram_cache`` keeps the SCRAM keys of the passwords in use, so that they are derived only once. ``require_auth``
    and ``channel_binding``, which may also be in the DSN, restrict what the server may ask for, as in libpq. A server
    that asks for anything else gets neither account's password, and the connect raises :class:`UntrustedServer`.

    Use it as an async context manager. It closes a refresher that it made itself, but not one that you passed in. Close
    the connections yourself.
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
        self._own_connect = connect
        self._owns_refresher = not isinstance(credentials, Refresher)
        if isinstance(credentials, Refresher):
            if refresh_interval is not None:
                raise ConfigurationError("set refresh_interval on the Refresher that you pass as credentials")
            if not keep_renamed:
                raise ConfigurationError("set keep_renamed on the Refresher that you pass as credentials")
            self._refresher = credentials
        else:
            self._refresher = Refresher(
                credentials, interval=refresh_interval, timeout=fetch_timeout, keep_renamed=keep_renamed, name=name
            )
        keys = KeyCache() if scram_cache else None
        self._maker = Maker(feed_of(self._refresher), connect, keys, name, listeners)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def name(self) -> str:
        """The name that events and log lines show."""
        return self._maker.name

    @property
    def events(self) -> Emitter:
        """The emitter of this connector's events. Add and remove listeners here."""
        return self._maker.events

    @property
    def refresher(self) -> Refresher:
        """The refresher that keeps the credentials fresh."""
        return self._refresher

    @property
    def pair(self) -> CredentialPair:
        """The pair in use."""
        return self._refresher.pair

    async def start(self) -> Self:
        """Fetch the first credentials. Raises the source's error if that fails. A second call does nothing."""
        await self._maker.start()
        return self

    async def connect(
        self, *args: Any, **connect_arguments: Unpack[OneConnectArguments]
    ) -> asyncpg.Connection[asyncpg.Record]:
        """Open an ordinary asyncpg connection, with the account whose turn it is or, if that is refused, the other one.

        Arguments given here override the connector's own. ``timeout`` is in seconds (default 60) and covers everything:
        the fallback to the other account, waiting for newer credentials, and waiting for a server that is down. If a
        login gets no answer for a second, it continues, and another one is tried with the next host or account.

        Raises :class:`CredentialsRefused` if all accounts stay refused, or :class:`ConnectTimeout` if the server stays
        down, but only after ``timeout``. Raises immediately: :class:`ConfigurationError` if no database is named, or if
        no host is named and no server runs on this machine, and all other errors of the driver. Cancelling the call
        abandons its logins.
        """
        if args or connect_arguments:
            check_connect_arguments(args, connect_arguments, connect=self._own_connect)
        made = await self._maker.connect(args or self._args, {**self._kwargs, **connect_arguments})
        return made.con  # type: ignore[no-any-return]

    async def refresh(self) -> None:
        """Fetch now: see :meth:`Refresher.refresh`."""
        await self._refresher.refresh()

    def is_superseded(self, con: Any) -> bool:
        """Whether the connection was made with an outdated password, so that you should open a new one."""
        attempt = self._maker.attempt_of(con)
        return attempt is not None and self._maker.is_superseded(attempt)

    @property
    def connect_time(self) -> Histogram:
        """How long successful logins took. Add an observer to get every single measurement."""
        return self._maker.connect_time

    def stats(self) -> ConnectorStats:
        """Return a frozen snapshot of the counters. It contains no secrets."""
        return ConnectorStats(**self._maker.stats_fields())

    async def close(self) -> None:
        """Stop the background work, and close the refresher unless you passed it in. A second call does nothing."""
        self._maker.close()
        await self._maker.wait_ended()
        if self._owns_refresher:
            await self._refresher.close()

    def terminate(self) -> None:
        """Do the same as :meth:`close` without waiting for it. Use this where you cannot await."""
        self._maker.close()
        if self._owns_refresher:
            self._refresher.terminate()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __del__(self) -> None:
        maker = getattr(self, "_maker", None)
        if maker and maker.is_started and not maker.is_closed:
            warnings.warn(f"unclosed connector {self.name!r}", ResourceWarning, source=self, stacklevel=2)
            self.terminate()


def maker_of(connector: Connector) -> Maker:
    """The maker behind a connector, which pools and engines use."""
    return connector._maker
