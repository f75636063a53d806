"""How a rotator connects if it is given DSNs: as the admin role, and with an account as applications do."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from .._login import connect_once, read_target
from ..credentials import Credential, Secret
from ..errors import RotationError

AdminConnect = Callable[[], Awaitable[Any]]
AccountConnect = Callable[[Credential], Awaitable[Any]]

#: The application_name of the rotator's own sessions.
APPLICATION_NAME = "aiopqr-rotate"


def admin_by_dsn(dsn: str, *, password: Secret | None = None, timeout: float = 10.0) -> AdminConnect:
    """A function that connects as the role that ``dsn`` names, to the ``postgres`` database if possible.

    If there is no ``password``, it comes from the places where asyncpg looks: the DSN, PGPASSWORD, or the password
    file. Raises :class:`RotationError` if the DSN names a database that does not exist.
    """

    async def connect() -> Any:
        # If this fails, pg_hba.conf or the password file may only list the database that the DSN names.
        with contextlib.suppress(
            asyncpg.InvalidCatalogNameError,
            asyncpg.InsufficientPrivilegeError,
            asyncpg.InvalidAuthorizationSpecificationError,
        ):
            con = await connect_once(
                dsn, password=password, timeout=timeout, application_name=APPLICATION_NAME, database="postgres"
            )
            await _check_database(con, dsn)
            return con
        return await connect_once(dsn, password=password, timeout=timeout, application_name=APPLICATION_NAME)

    return connect


async def _check_database(con: Any, dsn: str) -> None:
    target = read_target((dsn,), {})
    if target is None or target.database is None:
        return
    try:
        known = await con.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", target.database)
    except BaseException:
        con.terminate()
        raise
    if not known:
        await close(con)
        raise RotationError(f"database {target.database!r}, which the admin's DSN names, does not exist")


def account_by_dsn(dsn: str, timeout: float) -> AccountConnect:
    """A function that logs in with an account at ``dsn``, within ``timeout`` seconds."""

    async def connect(credential: Credential) -> Any:
        return await connect_once(
            dsn,
            user=credential.username,
            password=credential.password,
            timeout=timeout,
            application_name=APPLICATION_NAME,
        )

    return connect


async def close(con: Any) -> None:
    """Close a connection, whatever state it is in. Never raises."""
    try:
        await con.close(timeout=5.0)
    except Exception:  # the server is gone
        con.terminate()
