"""Finds out where asyncpg would connect to. asyncpg itself reads the arguments, DSN, environment and service file."""

from __future__ import annotations

import inspect
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg import connect_utils

from ..credentials import Secret
from ..errors import ConfigurationError
from ..options import service_section
from .names import is_ip

# If no database is named, asyncpg uses the user's name. Passing a name that no database has reveals whether it did so.
_NOBODY = "\0"
# The files from which a TLS context is read: the key in a DSN or a service file, and the environment variable.
TLS_FILES = {"sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL"}
_no_files = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as `ssl=`, it keeps asyncpg from reading certificates


@dataclass(frozen=True, slots=True)
class Address:
    """One server's address: a host's name and port, or a socket's path.

    ``ip`` is one of the host's IP addresses, or the host itself if that is one; None before the name is looked up.
    """

    host: str
    port: int
    ip: str | None = None

    @property
    def is_socket(self) -> bool:
        return self.host.startswith("/")

    def __str__(self) -> str:
        if self.is_socket:
            return self.host
        return f"{self.host}:{self.port}" + (f" ({self.ip})" if self.ip not in (None, self.host) else "")


@dataclass(frozen=True, slots=True)
class Target:
    """What the arguments of a connect lead to. ``database`` is None if none is named."""

    addresses: tuple[Address, ...]
    database: str | None
    session_attribute: str
    names_host: bool


def read_target(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target | None:
    """Read the arguments as asyncpg does, with its errors. None if this version of asyncpg does not allow that."""
    parse = getattr(connect_utils, "_parse_connect_dsn_and_args", None)
    if parse is None:
        return None
    known = dict(
        zip(("dsn",), args, strict=False), **{**kwargs, "user": _NOBODY, "password": _NOBODY, "ssl": _no_files}
    )
    try:
        names = inspect.signature(parse).parameters
        found, params = parse(**{name: known.get(name) for name in names})
        addresses = tuple(Address(a, 0) if isinstance(a, str) else _tcp_address(*a) for a in found)
        database, attribute = params.database, str(getattr(params.target_session_attrs, "value", "any"))
    except (AttributeError, TypeError, IndexError):
        return None
    # If no host is named, asyncpg tries the usual folders for sockets, and then localhost.
    defaults = len(addresses) > 1 and addresses[-1].host == "localhost" and all(a.is_socket for a in addresses[:-1])
    return Target(addresses, None if database == _NOBODY else database, attribute, not defaults)


def _tcp_address(host: str, port: int | str) -> Address:
    return Address(host, int(port), host if is_ip(host) else None)


def without_dsn(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Target
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments, without the DSN if possible, that is, if arguments can say all that is in it.

    asyncpg parses a DSN for each connect, which takes 20 µs, a fiftieth of the client's time. Do not call this if a
    service file is involved.
    """
    dsn, address = args[0] if args else kwargs.get("dsn"), target.addresses[0]
    if not isinstance(dsn, str) or len(target.addresses) > 1 or address.is_socket:
        return args, dict(kwargs)
    query = dict(parse_qsl(urlsplit(dsn).query))
    # As arguments, an empty host and port 0 would stand for the defaults.
    if not (address.host and address.port and query.keys() <= {"sslmode", "target_session_attrs"}):
        return args, dict(kwargs)
    tls = kwargs.get("ssl")
    known = {
        "host": address.host,
        "port": address.port,
        "database": target.database,
        "target_session_attrs": target.session_attribute,
        "ssl": query.get("sslmode") if tls is None else tls,
    }
    return (), {key: value for key, value in kwargs.items() if key != "dsn"} | known


def read_account(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, Secret]:
    """The user and the password that asyncpg would use. The password is empty if it finds none. Reads files.

    Raises :class:`ConfigurationError` if this version of asyncpg does not allow that.
    """
    known = {**dict(zip(("dsn",), args, strict=False)), **kwargs, "ssl": _no_files}
    try:
        parse = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]
        _, params = parse(**{name: known.get(name) for name in inspect.signature(parse).parameters})
        return params.user, Secret(params.password or "")
    except (AttributeError, TypeError):
        pass
    raise ConfigurationError(
        f"asyncpg {asyncpg.__version__} does not read a DSN as this version of aiopqr expects, so the user and the "
        "password cannot be found: upgrade aiopqr, or install asyncpg 0.32"
    )


def missing_file(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """A message about a missing TLS file that the DSN, the service file or the environment names, or None."""
    dsn = args[0] if args else kwargs.get("dsn")
    query = dict(parse_qsl(urlsplit(dsn).query)) if isinstance(dsn, str) else {}
    service = service_section(query, kwargs)
    for key, variable in TLS_FILES.items():
        named = ((key, query.get(key)), (f"{key} in the service file", service.get(key)))
        for name, path in (*named, (variable, os.environ.get(variable))):
            if path and not os.path.exists(path):
                return f"{name} points to a file that does not exist: {path}"
    return None
