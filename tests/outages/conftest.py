"""What the tests of outages share: a pool that reaches the server through a proxy that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from support.proxy import Proxy

import aiopqr
from aiopqr._connect import maker_of
from aiopqr.testing import RotatingPostgres

MakePool = Callable[..., AbstractAsyncContextManager[aiopqr.AlternatingPool]]


@pytest.fixture
async def proxy(postgres: RotatingPostgres) -> AsyncIterator[Proxy]:
    async with Proxy(postgres.server.host, postgres.server.port) as proxy:
        yield proxy


@pytest.fixture
def make_pool(postgres: RotatingPostgres) -> MakePool:
    """``make_pool(proxy, min_size=…)``: a pool on the test's own database, directly if there is no proxy."""

    def make(proxy: Proxy | None = None, **options: Any) -> aiopqr.AlternatingPool:
        defaults = {"credentials": postgres.source, "min_size": 0, "max_size": 4, "ssl": "disable"}
        dsn = proxy.dsn_of(postgres.dsn) if proxy else postgres.dsn
        return aiopqr.create_pool(options.pop("dsn", dsn), **{**defaults, **options})

    return make


async def eventually(fact: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait for a condition, checking often; fail if it does not become true."""
    async with asyncio.timeout(within):
        while not fact():
            await asyncio.sleep(0.005)


def failures_in_a_row(pool: aiopqr.AlternatingPool) -> int:
    """How many times the server that is down has been tried. Attempts that fail together count once."""
    state = maker_of(pool.connector)._state
    assert state is not None
    return state.outage.failures
