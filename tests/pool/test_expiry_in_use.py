"""Connections that asyncpg replaces while it hands them out are in use, too."""

from __future__ import annotations

import asyncio

from .conftest import MakePool


async def test_expiring_connections_all_the_time_ends_none_that_is_in_use(make_pool: MakePool) -> None:
    async with make_pool(min_size=4, max_size=8) as pool:
        until = asyncio.get_running_loop().time() + 2.0

        async def use() -> None:
            while asyncio.get_running_loop().time() < until:
                await pool.fetchval("select 1")

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(use())
            while asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.05)
                await pool.expire_connections()
