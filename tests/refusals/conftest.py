"""What the tests of refusals share: a pool on the test's own database, and a recorder of its events."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg
import pytest

import aiopqr
from aiopqr.credentials import Credential
from aiopqr.testing import PostgresServer, RotatingPostgres

MakePool = Callable[..., AbstractAsyncContextManager[aiopqr.AlternatingPool]]


@pytest.fixture
def make_pool(postgres: RotatingPostgres) -> MakePool:
    """``make_pool(min_size=…)``: a pool on the test's own database, fed by its source, with an hour between fetches."""

    def make(**options: Any) -> aiopqr.AlternatingPool:
        defaults = {
            "credentials": postgres.source,
            "refresh_interval": 3600.0,
            "min_size": 0,
            "max_size": 8,
            "ssl": "disable",
        }
        return aiopqr.create_pool(options.pop("dsn", postgres.dsn), **{**defaults, **options})

    return make


class Recorder:
    """A listener that keeps every event."""

    def __init__(self) -> None:
        self.events: list[aiopqr.Event] = []

    def __call__(self, event: aiopqr.Event) -> None:
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


async def hold(pool: aiopqr.AlternatingPool, count: int) -> list[str]:
    """Who logs in for ``count`` connections held at the same time."""
    held = [await pool.acquire() for _ in range(count)]
    users = [await con.fetchval("select session_user") for con in held]
    for con in held:
        await pool.release(con)
    return users


def refused_logins(server: PostgresServer, username: str, since: int) -> int:
    """How many logins of ``username`` are FATAL in the server's log."""
    return len(re.findall(rf"{re.escape(username)}@\S+ FATAL:", server.log_text(since)))


async def error_of_login(dsn: str, account: Credential, **options: Any) -> BaseException:
    """What a plain asyncpg login raises."""
    try:
        con = await asyncpg.connect(
            dsn, user=account.username, password=account.password.reveal, **{"ssl": "disable", "timeout": 20, **options}
        )
    except Exception as exc:
        return exc
    await con.close()
    raise AssertionError(f"{account.username} was let in")


async def eventually(fact: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait for a condition, checking often; fail if it does not become true."""
    async with asyncio.timeout(within):
        while not fact():
            await asyncio.sleep(0.005)
