"""The pytest plugin. Apart because pytest always loads it: nothing else is imported until it is used.

Its fixtures are not async, so they serve tests under pytest-asyncio, under anyio and without either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from . import PostgresServer, RotatingPostgres


@pytest.fixture(scope="session")
def aiopqr_server() -> Iterator[PostgresServer]:
    """The server below ``rotating_postgres``, one for the whole run. Override it to use another.

    The environment's ``AIOPQR_TEST_POSTGRES`` chooses: ``embedded`` (default), ``embedded18``, ``system``,
    ``testcontainers``, or the DSN of a superuser.
    """
    from . import server_of

    with server_of(os.environ.get("AIOPQR_TEST_POSTGRES", "embedded")) as server:
        yield server


@pytest.fixture
def rotating_postgres(aiopqr_server: PostgresServer) -> Iterator[RotatingPostgres]:
    """A fresh database with two accounts, whose passwords ``await rotating_postgres.rotate("odd")`` changes.

    ::

        async def test_a_rotation_goes_unnoticed(rotating_postgres):
            async with aiopqr.create_pool(rotating_postgres.dsn, credentials=rotating_postgres.source) as pool:
                await rotating_postgres.rotate("odd")
                assert await pool.fetchval("SELECT 1") == 1
    """
    from .rotating import RotatingPostgres
    from .server import run_apart

    rotating = run_apart(RotatingPostgres.create(aiopqr_server))
    yield rotating
    run_apart(rotating.drop())
