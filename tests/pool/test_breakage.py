"""What once broke the pool: hooks that misbehave, servers that hang up, and moments that are hard to hit."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from .conftest import MakePool


async def test_what_setup_changed_is_reset_though_nothing_else_ran(make_pool: MakePool) -> None:
    tenants = ["a", ""]

    async def setup(con: asyncpg.Connection) -> None:
        if tenant := tenants.pop(0):
            await con.execute(f"set app.tenant = {tenant}")

    async with make_pool(max_size=1, setup=setup) as pool:
        async with pool.acquire():
            pass
        assert not await pool.fetchval("select current_setting('app.tenant', true)")


async def test_a_connection_that_ends_during_setup_costs_no_permit(make_pool: MakePool) -> None:
    breaks = [True, False]

    async def setup(con: asyncpg.Connection) -> None:
        if breaks.pop(0):
            await con.close()
            for _ in range(3):  # long enough for the pool to hear of it
                await asyncio.sleep(0)

    async with make_pool(max_size=1, setup=setup) as pool:
        with pytest.raises(asyncpg.ConnectionDoesNotExistError, match="during setup="):
            await pool.acquire()
        async with pool.acquire(timeout=5) as con:
            assert await con.fetchval("select 1") == 1
