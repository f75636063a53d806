"""The keys of a secret, and how to read them. Errors name the key at fault and never show a value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from ..errors import InvalidSecret
from .account import Credential, Endpoint, Parity
from .secret import Secret

_PAIR_KEYS = tuple(f"{account}_{part}" for account in Parity for part in ("username", "password"))
_EXPECTED = f"{', '.join(_PAIR_KEYS)} and active_credential, or username and password"
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
_KEYS_SHOWN = 12

# The keys that :meth:`CredentialPair.from_secret` reads.
SECRET_KEYS = (
    *_PAIR_KEYS, "active_credential", "pending_username", "pending_password", "pending_staged_at",
    "username", "user", "password", "host", "port", "dbname",
)  # fmt: skip


def parse_secret(secret: str | bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    """Parse a secret into a mapping of keys to values. Raises :class:`InvalidSecret`."""
    if isinstance(secret, Mapping):
        return secret
    if not isinstance(secret, str | bytes | bytearray):
        raise InvalidSecret(f"a secret must be JSON text or a mapping, not {type(secret).__name__}")
    try:
        # In text, unlike in bytes, the parser does not accept an editor's byte order mark.
        entries = json.loads(secret.removeprefix("\ufeff") if isinstance(secret, str) else secret)
    except (ValueError, RecursionError):
        # The parser's error contains the text of the secret, so it is not passed on.
        entries = None
        problem = "the secret is not valid JSON"
    else:
        problem = "the secret must be a JSON object of keys and values"
    if not isinstance(entries, dict):
        raise InvalidSecret(problem)
    return entries


def is_pair(entries: Mapping[str, Any]) -> bool:
    """Whether a secret has any keys of a pair."""
    return any(entries.get(key) is not None for key in _PAIR_KEYS)


def parse_time(value: object) -> datetime | None:
    """Parse an ISO 8601 time with an offset, and convert it to UTC. Anything else is None, which means unknown."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
        return time.astimezone(UTC) if time is not None and time.utcoffset() is not None else None
    except (ValueError, OverflowError):
        return None


def accounts_of(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Read the accounts of a secret. Returns the arguments of a :class:`CredentialPair`."""
    accounts: dict[str, Any] = {"pending": _credential(entries, "pending_username", "pending_password")}
    if is_pair(entries):
        accounts |= {name: _credential(entries, f"{name}_username", f"{name}_password") for name in Parity}
        accounts["active"] = _active(entries, is_whole=bool(accounts["odd"] and accounts["even"]))
    else:
        # If both keys of the name are present, they have the same value (CloudNativePG).
        name = "user" if "user" in entries and "username" not in entries else "username"
        accounts |= {"odd": _credential(entries, name, "password"), "even": None, "is_single": True}
        if accounts["odd"] is None:
            raise InvalidSecret(f"the secret has no credentials: expected {_EXPECTED}; found {_found(entries)}")
    since = parse_time(entries.get("pending_staged_at")) if accounts["pending"] else None
    return {**accounts, "endpoint": _endpoint(entries), "pending_since": since}


def _credential(entries: Mapping[str, Any], username_key: str, password_key: str) -> Credential | None:
    keys = {"username": username_key, "password": password_key}
    username, password = (entries.get(key) for key in keys.values())
    if username is password is None:
        return None
    for key, value in ((username_key, username), (password_key, password)):
        if value is None:
            raise InvalidSecret(f"{key} is missing; found {_found(entries)}")
        if not isinstance(value, str | Secret):
            raise InvalidSecret(f"{key} must be text, not {type(value).__name__}")
    try:
        return Credential(cast(str, username), cast(str, password))
    except InvalidSecret as exc:
        part, problem = str(exc).split(" ", 1)
    raise InvalidSecret(f"{keys[part]} {problem}")


def _active(entries: Mapping[str, Any], *, is_whole: bool) -> Parity:
    active = entries.get("active_credential", None if is_whole else "odd")
    if active in ("odd", "even"):
        return Parity(active)
    if "active_credential" not in entries:
        raise InvalidSecret(f"active_credential is missing; found {_found(entries)}")
    around = ", without white space around it" if isinstance(active, str) and active.strip() in tuple(Parity) else ""
    raise InvalidSecret(f'active_credential must be "odd" or "even"{around}')


def _endpoint(entries: Mapping[str, Any]) -> Endpoint | None:
    place = (entries.get(key) for key in ("host", "port", "dbname"))
    host, port, database = (None if value == "" else value for value in place)
    if host is port is database is None:
        return None
    for key, value in (("host", host), ("dbname", database)):
        if value is not None and not isinstance(value, str):
            raise InvalidSecret(f"{key} must be text, not {type(value).__name__}")
    if port is not None:
        try:
            number = int(port)
        except (TypeError, ValueError, OverflowError):  # the last one for infinity, which JSON's 1e999 becomes
            number = 0
        if isinstance(port, bool | float) or not 0 < number < 65536:
            raise InvalidSecret("port must be a number from 1 to 65535")
        port = number
    # CloudNativePG writes "*" into the secret of a superuser, who may use any database.
    return Endpoint(host, port, None if database == "*" else database)


def _found(entries: Mapping[str, Any]) -> str:
    """The keys of a secret, for an error. Only those that look like keys are shown."""
    keys = [key for key in entries if isinstance(key, str) and _KEY.fullmatch(key)][:_KEYS_SHOWN]
    others = len(entries) - len(keys)
    shown = [*keys, *([f"{others} more" if keys else f"{others} others"] if others else [])]
    return ", ".join(shown) or "no keys"
