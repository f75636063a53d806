"""Promises of asyncpg's pool that its own tests (``make conformance``) once found broken in ours, one test for each."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
import weakref
from typing import Any

import asyncpg
import pytest

import aiopqr
from aiopqr.testing import RotatingPostgres


async def test_a_connection_whose_setup_failed_says_that_it_is_closed(postgres: RotatingPostgres) -> None:
    seen = []

    async def setup(connection: Any) -> None:
        seen.append(connection)
        raise LookupError

    async with aiopqr.create_pool(
        postgres.dsn, credentials=postgres.source, min_size=1, max_size=1, setup=setup
    ) as pool:
        with pytest.raises(LookupError):
            await pool.acquire()
        assert seen[0].is_closed()


@pytest.mark.leaves_tasks
async def test_a_terminated_pool_is_collected_before_the_loop_runs_again(postgres: RotatingPostgres) -> None:
    pool = await aiopqr.create_pool(postgres.dsn, credentials=postgres.source, min_size=1, max_size=1)
    ref = weakref.ref(pool)
    pool.terminate()
    del pool
    gc.collect()
    assert ref() is None


@pytest.mark.leaves_tasks
@pytest.mark.parametrize("how", [{}, {"max_lifetime": 0}], ids=["whose tasks wake up", "whose tasks sleep for ever"])
async def test_a_dropped_pool_is_collected_and_speaks_of_its_connections(
    postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture, how: dict[str, Any]
) -> None:
    pool = await aiopqr.create_pool(postgres.dsn, credentials=postgres.pair, min_size=1, max_size=1, **how)
    ref = weakref.ref(pool)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        del pool
        gc.collect()
    assert ref() is None
    assert any("unclosed connection" in str(warning.message) for warning in caught)
    assert "destroyed" not in caplog.text


async def test_a_pool_used_while_its_first_fetch_runs_says_that_it_is_not_ready(postgres: RotatingPostgres) -> None:
    postgres.source.gate = asyncio.Event()
    pool = aiopqr.create_pool(postgres.dsn, credentials=postgres.source, min_size=1, max_size=1)
    opening = asyncio.ensure_future(pool)
    await postgres.source.wait_begun(1)
    with pytest.raises(asyncpg.InterfaceError, match="being initialized, but not yet ready"):
        await pool.fetchval("SELECT 1")
    postgres.source.gate.set()
    await opening
    await pool.close()


async def test_closing_a_pool_while_it_restores_its_floor_logs_no_failure(
    postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    restoring = asyncio.Event()

    async def init(connection: Any) -> None:
        if opened:
            restoring.set()
            await asyncio.Event().wait()

    opened = False
    pool = await aiopqr.create_pool(postgres.dsn, credentials=postgres.source, min_size=1, max_size=1, init=init)
    opened = True
    async with pool.acquire() as connection:
        connection.terminate()
    await restoring.wait()
    with caplog.at_level(logging.DEBUG):
        await pool.close()
    assert [record.message for record in caplog.records if record.name.startswith("asyncpg")] == []
