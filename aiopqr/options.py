"""Checks options as soon as they are passed, so that a wrong one raises an error that names it."""

from __future__ import annotations

import configparser
import os
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict
from urllib.parse import parse_qsl, unquote, urlsplit

from ._flaws import flaw_of_dsn
from ._trust import take_trust
from .errors import ConfigurationError


class ConnectArguments(TypedDict, total=False):
    """The arguments that are passed on to ``asyncpg.connect``."""

    host: str | Sequence[str] | None
    port: int | Sequence[int] | None
    database: str | None
    passfile: str | os.PathLike[str] | None
    service: str | None
    servicefile: str | os.PathLike[str] | None
    ssl: str | bool | ssl.SSLContext | None
    direct_tls: bool | None
    command_timeout: float | None
    statement_cache_size: int
    max_cached_statement_lifetime: int
    max_cacheable_statement_size: int
    server_settings: Mapping[str, str] | None
    target_session_attrs: str | None
    krbsrvname: str | None
    gsslib: Literal["gssapi", "sspi"] | None
    init_size: int | None


class OneConnectArguments(ConnectArguments, total=False):
    """The arguments of a single connect."""

    timeout: float | None
    connection_class: type[Any]
    record_class: type[Any]
    loop: Any


def non_negative(name: str, value: float) -> float:
    """Check that an option is a finite number of at least 0. Raises :class:`ConfigurationError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise ConfigurationError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


def positive(name: str, value: float) -> float:
    """Check that an option is a finite number above 0. Raises :class:`ConfigurationError` otherwise."""
    if non_negative(name, value) == 0:
        raise ConfigurationError(f"{name} must be more than 0 seconds")
    return float(value)


def optional_timeout(name: str, value: float | None) -> float | None:
    """Check that an option is a number of at least 0, or None. Raises :class:`ConfigurationError` otherwise."""
    return None if value is None else non_negative(name, value)


def whole_number_or_none(name: str, value: int | None) -> int | None:
    """Check that an option is an integer of at least 0, or None. Raises :class:`ConfigurationError` otherwise."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ConfigurationError(f"{name} must be a whole number, 0 or more, or None, not {value!r}")
    return value


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {key: value for key, value in options.items() if value is not None}


def check_connect_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], *, connect: Callable[..., Any] | None = None
) -> None:
    """Raise :class:`ConfigurationError` for a user or a password, as arguments or in the DSN, or a malformed DSN.

    Other arguments of a user's own ``connect`` are not checked. Errors never show the DSN, which may contain a
    password.
    """
    for key in ("user", "password"):
        if kwargs.get(key) is not None:
            raise ConfigurationError(f"{key}= cannot be given together with credentials=, which supply it")
    if connect is not None:
        return
    take_trust(args, kwargs, {})
    if len(args) > 1:
        raise ConfigurationError("only the DSN may be a positional argument")
    dsn = args[0] if args else kwargs.get("dsn")
    if dsn is None:
        return
    if not isinstance(dsn, str):
        raise ConfigurationError(f"dsn must be text, not {type(dsn).__name__}")
    if problem := flaw_of_dsn(dsn):
        raise ConfigurationError(f"dsn {problem}")
    parts = urlsplit(dsn)
    query = {key for key, _ in parse_qsl(parts.query)}
    if "@" in unquote(parts.netloc) or query & {"user", "password"}:
        raise ConfigurationError("dsn must not contain a user or a password: credentials= supplies them")


def service_section(query: Mapping[str, str], kwargs: Mapping[str, Any]) -> Mapping[str, str]:
    """The section of the service file for the service that is named, or an empty mapping. Reads the file."""
    name = kwargs.get("service") or query.get("service")
    if not name:
        return {}
    path = kwargs.get("servicefile") or os.environ.get("PGSERVICEFILE") or os.path.expanduser("~/.pg_service.conf")
    sections = configparser.ConfigParser()
    sections.read(path)
    return dict(sections[name]) if sections.has_section(name) else {}
