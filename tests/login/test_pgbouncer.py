"""Logins through PgBouncer, which plays the server's part itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from support.pgbouncer import PgBouncer

from aiopqr._login import scram
from aiopqr._login.asyncpg_login import login
from aiopqr._login.keys import KeyCache
from aiopqr.credentials import Credential, Secret

from .conftest import PASSWORD


@pytest.fixture(params=["scram-sha-256 verifier", "scram-sha-256 plain", "md5 plain"])
def bouncer(request: pytest.FixtureRequest, servers: Any) -> Iterator[tuple[str, int]]:
    method, _, kept = request.param.partition(" ")
    secret = scram.verifier(PASSWORD) if kept == "verifier" else PASSWORD
    users = (Credential("by_scram", secret),)
    proxy = PgBouncer(
        servers("16").postgres, pool_mode="session", userlist=users, logs_in_as="by_trust", auth_type=method
    )
    proxy.start()
    yield request.param, proxy.port
    proxy.stop()


async def test_pgbouncer_lets_in_whom_asyncpg_it_lets_in(bouncer: tuple[str, int]) -> None:
    kind, port = bouncer
    cache = KeyCache()
    address = {"host": "127.0.0.1", "port": port, "database": "postgres", "ssl": False, "timeout": 20.0}

    async def enter(password: str, cache: KeyCache | None) -> Any:
        return await login(asyncpg.connect, **address, user="by_scram", password=Secret(password), cache=cache)

    for chosen in (cache, cache, None):
        con = await enter(PASSWORD, chosen)
        assert await con.fetchval("select 1") == 1
        await con.close()
    assert bool(cache) == kind.startswith("scram")
    errors = []
    for chosen in (cache, None):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await enter("wrong", chosen)
        errors.append((type(caught.value), caught.value.sqlstate, str(caught.value)))
    assert errors[0] == errors[1]
    assert asyncio.all_tasks() == {asyncio.current_task()}
