"""Input that the commands share: DSNs without passwords, the admin's password, and where the secret is.

No command takes a password on its command line, where every user of the machine could read it, and none prints one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg
import typer

from .._flaws import flaw_of_dsn
from .._login import DRIVER_ERRORS, place_of
from ..credentials import Secret
from ..errors import AiopqrError, ConfigurationError, MissingExtra, RotationError, describe
from ..rotation.connects import AdminConnect, admin_by_dsn
from ..rotation.stores.file import FileStore
from ..rotation.stores.vault import VaultStore

VAULT_HELP = (
    "Secret that contains the pair, in a KV engine (version 2) of Vault or OpenBao: MOUNT/PATH, or MOUNT//PATH if the "
    "mount contains a slash. Reads VAULT_ADDR, VAULT_TOKEN, VAULT_NAMESPACE and VAULT_CACERT from the environment."
)
ADMIN_PASSWORD = "AIOPQR_ADMIN_PASSWORD"
ADMIN_PASSWORD_WAYS = f"use {ADMIN_PASSWORD}, PGPASSWORD, the password file (PGPASSFILE) or --password-stdin"


class UsageError(typer.BadParameter):
    """A mistake on the command line. It prints the usage and exits with code 2."""


def dsn_without_password(dsn: str, option: str, *, user_allowed: bool) -> str:
    """Return ``dsn``, or raise :class:`UsageError` if it contains a password, or a user where that is not allowed.

    The error never shows the DSN.
    """
    public = "everyone on this machine can read in the process list: "
    public += ADMIN_PASSWORD_WAYS if user_allowed else "the accounts' passwords come from the secret"
    if problem := flaw_of_dsn(dsn):
        raise UsageError(f"{option} {problem}. It must not contain a password, which {public}")
    parts = urlsplit(dsn)
    query = {key.lower() for key, _ in parse_qsl(parts.query, keep_blank_values=True)}
    user, _, _ = parts.netloc.rpartition("@")
    if ":" in unquote(user) or query & {"password", "sslpassword"}:
        raise UsageError(f"{option} contains a password, which {public}")
    if not user_allowed and (user or "user" in query):
        raise UsageError(f"{option} must not name a user, because the secret's accounts are used")
    return dsn


def admin_password(from_stdin: bool) -> Secret | None:
    """Read the admin role's password from standard input or the environment. None: asyncpg will look for it."""
    if from_stdin:
        line = sys.stdin.readline().rstrip("\r\n")
        if not line:
            raise UsageError("--password-stdin: the first line of standard input must be the password")
        return Secret(line)
    text = os.environ.get(ADMIN_PASSWORD)
    return Secret(text) if text else None


def admin_connect(dsn: str, password: Secret | None) -> AdminConnect:
    """Make a function that connects as the admin role. Its errors say where to, and how to pass a missing password."""
    connect = admin_by_dsn(dsn, password=password)
    has_password = password is not None or "PGPASSWORD" in os.environ

    async def advising() -> Any:
        advice = ""
        try:
            return await connect()
        except asyncpg.InvalidAuthorizationSpecificationError as exc:
            problem = describe(exc)
            if not has_password:
                advice = f"; neither {ADMIN_PASSWORD} nor PGPASSWORD is set: {ADMIN_PASSWORD_WAYS}"
        except DRIVER_ERRORS as exc:
            problem = describe(exc)
        raise RotationError(f"the admin role cannot connect to {place_of(dsn)}: {problem}{advice}")

    return advising


def moment(text: str | None, option: str) -> datetime | None:
    """Parse an ISO 8601 time. If it has no offset, it is UTC."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} must be a time such as 2025-03-01T12:00:00Z") from None
    return time if time.utcoffset() is not None else time.replace(tzinfo=UTC)


@contextlib.asynccontextmanager
async def open_store(
    file: Path | None, secret: str | None, vault: str | None, region: str | None, endpoint_url: str | None
) -> AsyncIterator[Any]:
    """Open the :class:`SecretStore` that the options name. It also has ``create()``."""
    if file is not None:
        yield FileStore(file)
        return
    if vault is not None:
        mount, path = vault_place(vault)
        async with VaultStore(path, mount=mount) as store:
            yield store
        return
    store_type = from_aws("aiopqr.rotation.stores.aws", "SecretsManagerStore")
    async with store_type(secret, region_name=region, endpoint_url=endpoint_url) as store:
        yield store


def vault_place(place: str) -> tuple[str, str]:
    """Split the value of ``--vault`` into the mount and the path."""
    mount, _, path = place.strip("/").partition("//" if "//" in place.strip("/") else "/")
    if not mount or not path:
        raise UsageError(f"--vault must be MOUNT/PATH, such as secret/orders, not {place!r}")
    return mount, path


def exactly_one(**options: object) -> None:
    """Raise :class:`UsageError` unless exactly one of the options is given."""
    names = [f"--{name.replace('_', '-')}" for name in options]
    if sum(value is not None for value in options.values()) != 1:
        raise UsageError(f"give exactly one of {', '.join(names)}")


def from_aws(module: str, name: str) -> Any:
    """Import a class that needs the ``aws`` extra. Raises :class:`MissingExtra` if that is not installed."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if exc.name == module:
            raise AiopqrError("this version of aiopqr has no support for --secret") from None
        raise MissingExtra("--secret", "aws") from None


def imported(place: str) -> Any:
    """Import the object that ``module:name`` names. The current folder is importable, as with ``python -m``."""
    module, _, name = place.partition(":")
    if not module or not name:
        raise UsageError("--source must look like module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(f"--source {place}: {exc}") from None
    return value


def run(main: Coroutine[Any, Any, int], command: str) -> None:
    """Run a command and exit with its code, 2 if it could not run, or 130 if it was interrupted. Always raises."""
    try:
        code = asyncio.run(main)
    except KeyboardInterrupt:
        code = 130
    except AiopqrError as exc:
        typer.echo(f"aiopqr {command}: {exc}", err=True)
        code = 2
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
        typer.echo(f"aiopqr {command}: {describe(exc)}", err=True)
        code = 2
    raise typer.Exit(code)
