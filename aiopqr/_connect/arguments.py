"""The arguments that one connect passes to the driver, and the servers that they lead to."""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .._login import OWN_CONNECT, Address, Target, addresses_of, missing_file, read_target, without_dsn
from .._trust import Trust, take_trust
from ..credentials import Endpoint
from ..errors import ConfigurationError

# The arguments and variables that decide a connect's target and trust, apart from the service file. If a service file
# may be involved, nothing is cached.
_DECISIVE = frozenset(
    {"dsn", "host", "port", "database", "ssl", "direct_tls", "target_session_attrs", "service", "servicefile",
     "require_auth", "channel_binding"}
)  # fmt: skip
_VARIABLES = (
    "PGHOST",
    "PGPORT",
    "PGDATABASE",
    "PGTARGETSESSIONATTRS",
    "PGSERVICE",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
)


_LOOK_EVERY = 1.0  # seconds between looks at the variables


class Arguments:
    """The arguments of the driver's connect, except for user, password and timeout.

    ``target`` says where they lead. It is None if we cannot know that, since a user's own ``connect=`` may interpret
    its arguments in any way.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Target | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.target = target
        self.trust = trust or Trust()

    @classmethod
    def for_asyncpg(cls, args: tuple[Any, ...], kwargs: dict[str, Any], endpoint: Endpoint | None) -> Arguments:
        """Read the arguments as asyncpg would. The secret's ``endpoint`` supplies the defaults.

        Raises :class:`ConfigurationError` if no database is named, and asyncpg's error for arguments it cannot read.
        """
        args, kwargs, trust = take_trust(args, kwargs, os.environ)
        target = read_target(args, kwargs)
        if target is None:
            return cls(args, kwargs, trust=trust)
        defaults: dict[str, Any] = {}
        if endpoint and endpoint.host and not target.names_host:
            defaults |= {"host": endpoint.host.split(",")}  # one, or several as in a DSN
            defaults |= {"port": endpoint.port} if endpoint.port else {}
        if endpoint and endpoint.database and target.database is None:
            defaults |= {"database": endpoint.database}
        if defaults:
            kwargs = {**kwargs, **defaults}
            target = read_target(args, kwargs) or target
        if target.database is None:
            also, where = "", "the DSN, with database=, in PGDATABASE, or as dbname in the secret"
            if not target.names_host:
                also, where = (
                    " and no host",
                    "the DSN, with database= and host=, in PGDATABASE and PGHOST, or in the secret",
                )
            raise ConfigurationError(
                f"no database{also} is named: asyncpg would use a database with the account's name, and each of the "
                f"two accounts would use a different one. Name it in {where}"
            )
        if not _names_service(args, kwargs):
            args, kwargs = without_dsn(args, kwargs, target)
        return cls(args, kwargs, target, trust)

    @classmethod
    def for_own_connect(cls, args: tuple[Any, ...], kwargs: dict[str, Any], endpoint: Endpoint | None) -> Arguments:
        """The arguments for a user's own ``connect=``, which are passed unchanged.

        The secret's ``endpoint`` is added if nothing else says where to connect to. Raises :class:`ConfigurationError`
        for ``require_auth`` and ``channel_binding``, which cannot be enforced there.
        """
        if take_trust(args, kwargs, os.environ)[2].explicit:
            raise ConfigurationError(OWN_CONNECT)
        elsewhere = any(args) or any(kwargs.get(key) for key in ("dsn", "host", "service"))
        if endpoint is None or elsewhere or os.environ.get("PGHOST") or os.environ.get("PGSERVICE"):
            return cls(args, kwargs)
        defaults = {"host": endpoint.host, "port": endpoint.port, "database": endpoint.database}
        return cls(args, {**{key: value for key, value in defaults.items() if value is not None}, **kwargs})

    @property
    def addresses(self) -> tuple[Address | None, ...]:
        """The servers to try, in the given order; (None,) if only the driver knows them."""
        return self.target.addresses if self.target else (None,)

    @property
    def session_attribute(self) -> str:
        """The ``target_session_attrs``; "any" if only the driver knows it."""
        return self.target.session_attribute if self.target else "any"

    @property
    def prefers_standby(self) -> bool:
        """Whether to use a primary only if there is no standby."""
        return self.session_attribute == "prefer-standby"

    def kwargs_for(self, address: Address | None) -> dict[str, Any]:
        """The arguments that lead to this address only."""
        if address is None or self.target is None or len(self.target.addresses) == 1:
            return self.kwargs
        return {**self.kwargs, "host": address.host, "port": address.port or 5432}

    def explained(self, exc: Exception) -> Exception:
        """An error that names the missing file, which the driver's ``FileNotFoundError`` does not; or else ``exc``."""
        missing = missing_file(self.args, self.kwargs) if self.target else None
        if missing is None:
            return exc
        named = ConfigurationError(missing)
        named.__cause__ = exc
        return named


class ArgumentReader:
    """Reads the arguments of a connector's connects for asyncpg, and caches the last result.

    Environment variables are looked up at most once a second. Doing so for each connect would take a fiftieth of the
    client's time.
    """

    def __init__(self) -> None:
        self._variables: list[str | None] = []
        self._look_again = -math.inf
        self._asked: tuple[object, ...] | None = None
        self._found = Arguments((), {})

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], endpoint: Endpoint | None, now: float) -> Arguments:
        """See :meth:`Arguments.for_asyncpg`. ``now`` is in loop time."""
        if now >= self._look_again:
            self._look_again = now + _LOOK_EVERY
            self._variables = [os.environ.get(variable) for variable in _VARIABLES]
        decisive, others = dict[str, Any](), dict[str, Any]()
        for key, value in kwargs.items():
            if key in _DECISIVE:
                decisive[key] = list(value) if isinstance(value, list) else value  # the caller may change it
            else:
                others[key] = value
        asked = args, decisive, endpoint, self._variables
        found = self._found
        if asked != self._asked:
            found = Arguments.for_asyncpg(args, decisive, endpoint)
            if found.target and not _names_service(args, decisive):
                self._asked, self._found = asked, found
        return Arguments(found.args, {**others, **found.kwargs}, found.target, found.trust)


def _names_service(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    query = urlsplit((args[0] if args else kwargs.get("dsn")) or "").query
    return bool(kwargs.get("service") or os.environ.get("PGSERVICE")) or "service" in dict(parse_qsl(query))


async def resolved(address: Address) -> list[Address]:
    """Look up a host's name, and return one address for each of its IP addresses."""
    ips = await addresses_of(address.host, address.port, asyncio.get_running_loop())
    return [replace(address, ip=ip) for ip in ips]
