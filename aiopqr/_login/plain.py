"""Single connections without a pool, for the rotator, the command line, the Lambda and the test tools.

A driver's exception, or a cancellation, carries frames whose locals hold passwords and statements. So call the driver
with secrets only inside :class:`no_frames`, which drops the frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import asyncpg

from .._flaws import flaw_of_dsn
from .._threads import in_thread
from .._trust import take_trust
from ..credentials import Secret
from ..errors import ConfigurationError, without_frames
from .asyncpg_login import login
from .parsing import read_account, read_target

#: The default require_auth of administrators' tools.
STRICT = "scram-sha-256,none"
#: The errors of the driver if a server refuses something or the connection is lost.
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class no_frames:  # noqa: N801 - lower case like contextlib's managers, which cannot be used: they restore the frames
    """Drop the frames of any exception raised inside, even of a cancellation. The exception itself is kept."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if exc is not None:
            without_frames(exc)


async def connect_once(
    dsn: str | None,
    *,
    user: str | None = None,
    password: Secret | None = None,
    timeout: float = 10.0,
    application_name: str | None = None,
    require_auth: str = STRICT,
    asked: Callable[[str], None] | None = None,
    **options: Any,
) -> Any:
    """Open a connection that works through any pooler. Raises asyncpg's errors, without their frames.

    If ``user`` or ``password`` is missing, it comes from the places where asyncpg looks: the DSN, the environment, the
    password file. ``require_auth`` says what the server may ask for, unless the DSN or PGREQUIREAUTH does. If the
    server asks for anything else, this raises :class:`UntrustedServer`. ``asked`` is called with what it asked for.
    A DSN that would be misread raises :class:`ConfigurationError`.
    """
    if dsn and (problem := flaw_of_dsn(dsn)):
        raise ConfigurationError(f"the DSN {problem}")
    options = {"statement_cache_size": 0, **options}
    if application_name is not None:
        options["server_settings"] = {"application_name": application_name}
    with no_frames():
        args, options, trust = take_trust((dsn,), options, os.environ, require_auth)
        if user is None or password is None:
            read_user, read_password = await in_thread(read_account, args, {**options, "user": user})
            user, password = user or read_user, password or read_password
        who: dict[str, Any] = {"user": user, "password": password, "trust": trust, "asked": asked, "timeout": timeout}
        return await login(asyncpg.connect, *args, **who, **options)


def place_of(dsn: str | None, **options: Any) -> str:
    """Where a DSN leads to, in readable form: ``db:5432/orders``. Empty if the DSN cannot be read."""
    if dsn and flaw_of_dsn(dsn):
        return ""
    try:
        target = read_target((dsn,), options)
    except Exception:  # asyncpg's own error, which the connect will raise again
        return ""
    if target is None:
        return ""
    hosts = ",".join(str(address) for address in target.addresses)
    return f"{hosts}/{target.database}" if target.database else hosts


def answered(exc: BaseException) -> bool:
    """Whether a server or a proxy has sent this error. If not, it is the driver's own, for a lost connection."""
    return isinstance(exc, asyncpg.PostgresError) and exc.severity is not None
