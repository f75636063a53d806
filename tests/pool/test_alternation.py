"""The accounts take turns, whatever their passwords look like."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from aiopqr import Parity
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool


async def test_the_first_connection_takes_the_active_account(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    from dataclasses import replace

    postgres.source.pair = replace(postgres.pair, active=Parity.EVEN)
    async with make_pool(min_size=1) as pool:
        assert await pool.fetchval("select session_user") == postgres.pair.even.username


async def test_of_2n_connections_opened_at_once_n_take_each_account(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(min_size=8, max_size=8):
        users = Counter(row["usename"] for row in await postgres.sessions())
    assert users == dict.fromkeys(postgres.usernames, 4)


async def test_connections_opened_by_concurrent_acquirers_alternate(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with make_pool(max_size=6) as pool:
        held = await asyncio.gather(*(pool.acquire() for _ in range(6)))
        users = Counter([await con.fetchval("select session_user") for con in held])
        for con in held:
            await pool.release(con)
    assert users == dict.fromkeys(postgres.usernames, 3)


AWKWARD = [
    "@:/?#%&\\'\"",
    " leading and trailing ",
    "x" * 200,
    "pässwörd-ß-ñ-密码-🔑",
    "$HOME \t\n`id`",
    "%41%zz",
]


@pytest.mark.parametrize("password", AWKWARD, ids=range(len(AWKWARD)))
async def test_any_password_logs_in(make_pool: MakePool, postgres: RotatingPostgres, password: str) -> None:
    await postgres.rotate("odd", password=password)
    async with make_pool(min_size=2, max_size=2) as pool:
        users = {row["usename"] for row in await postgres.sessions()}
        assert pool.stats().fallbacks == 0
    assert users == set(postgres.usernames)


async def test_a_degraded_pair_works_and_is_reported(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    from dataclasses import replace

    events: list[object] = []
    postgres.source.pair = replace(postgres.pair, odd=None)
    async with make_pool(min_size=2, listeners=[events.append]) as pool:
        assert await pool.fetchval("select session_user") == postgres.pair.even.username
        assert pool.stats().degraded
    assert "PairDegraded" in [type(event).__name__ for event in events]
