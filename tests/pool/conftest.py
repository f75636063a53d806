"""What the pool's tests share: a pool on a rotating database, and ways to wait for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

import aiopqr
from aiopqr.testing import RotatingPostgres

MakePool = Callable[..., AbstractAsyncContextManager[aiopqr.AlternatingPool]]


@pytest.fixture
def make_pool(postgres: RotatingPostgres) -> MakePool:
    """``make_pool(min_size=…)``: a pool on the test's own database, fed by its source."""

    def make(**options: Any) -> aiopqr.AlternatingPool:
        defaults = {"credentials": postgres.source, "min_size": 0, "max_size": 4, "ssl": "disable"}
        return aiopqr.create_pool(options.pop("dsn", postgres.dsn), **{**defaults, **options})

    return make


async def eventually(fact: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait for a condition, checking often; fail if it does not become true."""
    async with asyncio.timeout(within):
        while not fact():
            await asyncio.sleep(0.005)
