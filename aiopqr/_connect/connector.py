"""The public class: ``connect()`` with a pair of accounts, for what a pool is not for (LISTEN, migrations).

``maker`` does the work, for pools too.
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
    """Makes asyncpg connections with the accounts of a pair in turn.

    Takes what :func:`asyncpg.connect` takes, except ``user`` and ``password``. ``credentials`` is a source, an async
    callable, a fixed pair or a shared :class:`Refresher`. ``connect`` is called in asyncpg's place, with the chosen
    ``user=`` and ``password=`` (a callable, which asyncpg accepts too; it only works during that call). ``scram_cache``
    keeps the SCRAM keys of the passwords in use, so that they are derived once. ``require_auth`` and
    ``channel_binding``, also in the DSN, say what the server may ask for, as in libpq. A server that asks for more gets
    neither account's password, and the connect raises :class:`UntrustedServer`.

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
        self._own_connect = connect
        self._owns_refresher = not isinstance(credentials, Refresher)
        if isinstance(credentials, Refresher):
            if refresh_interval is not None:
                raise ConfigurationError("refresh_interval belongs to the Refresher that is given as credentials")
            if not keep_renamed:
                raise ConfigurationError("keep_renamed belongs to the Refresher that is given as credentials")
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
        """The name in its events and log lines."""
        return self._maker.name

    @property
    def events(self) -> Emitter:
        """Where listeners are added and removed."""
        return self._maker.events

    @property
    def refresher(self) -> Refresher:
        """What keeps its credentials fresh."""
        return self._refresher

    @property
    def pair(self) -> CredentialPair:
        """The pair in use."""
        return self._refresher.pair

    async def start(self) -> Self:
        """Fetch the first credentials. Raises what the source raised. A second call does nothing."""
        await self._maker.start()
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
        made = await self._maker.connect(args or self._args, {**self._kwargs, **connect_arguments})
        return made.con  # type: ignore[no-any-return]

    async def refresh(self) -> None:
        """Fetch now: see :meth:`Refresher.refresh`."""
        await self._refresher.refresh()

    def is_superseded(self, con: Any) -> bool:
        """Whether the connection was made with a password that is no longer the newest: it is time for a new one."""
        attempt = self._maker.attempt_of(con)
        return attempt is not None and self._maker.is_superseded(attempt)

    @property
    def connect_time(self) -> Histogram:
        """How long successful logins took. Add an observer to get each measurement."""
        return self._maker.connect_time

    def stats(self) -> ConnectorStats:
        """A frozen snapshot. No secret is in it."""
        return ConnectorStats(**self._maker.stats_fields())

    async def close(self) -> None:
        """End the background work, and close the refresher if it is the connector's own. A second call does nothing."""
        self._maker.close()
        await self._maker.wait_ended()
        if self._owns_refresher:
            await self._refresher.close()

    def terminate(self) -> None:
        """As :meth:`close`, where nothing can be awaited."""
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
    """What pools and engines use of a connector."""
    return connector._maker
