"""The pytest plugin. pytest always loads it, so it imports everything else only when a fixture is used.

Its fixtures are not async, so they work with pytest-asyncio, with anyio, and without either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from . import PostgresServer, RotatingPostgres, Vault, VaultDatabase


@pytest.fixture(scope="session")
def aiopqr_server() -> Iterator[PostgresServer]:
    """The server that ``rotating_postgres`` uses, one for the whole run. Override this fixture to use another server.

    Choose it with the environment variable ``AIOPQR_TEST_POSTGRES``: ``embedded`` (default), ``embedded18``,
    ``system``, ``testcontainers``, ``testcontainers:IMAGE``, or the DSN of a superuser.
    """
    from . import server_of

    with server_of(os.environ.get("AIOPQR_TEST_POSTGRES", "embedded")) as server:
        yield server


@pytest.fixture
def rotating_postgres(aiopqr_server: PostgresServer) -> Iterator[RotatingPostgres]:
    """A new database with two accounts. ``await rotating_postgres.rotate("odd")`` changes a password.

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


@pytest.fixture(scope="session")
def vault() -> Iterator[Vault]:
    """A real OpenBao server, which has Vault's API, one for the whole run. Skips the test if OpenBao is missing."""
    from . import NotAvailable, Vault

    try:
        server = Vault().start()
    except NotAvailable as exc:
        pytest.skip(str(exc))
    yield server
    server.stop()


@pytest.fixture
def vault_database(vault: Vault, rotating_postgres: RotatingPostgres) -> Iterator[VaultDatabase]:
    """A database engine in ``vault`` for the database of ``rotating_postgres``.

    ::

        async def test_vault_rotates_unnoticed(rotating_postgres, vault_database):
            await vault_database.static_roles()  # odd and even
            source = VaultSource.static_roles("odd", "even", **vault_database.options)
            async with aiopqr.create_pool(rotating_postgres.dsn, credentials=source) as pool:
                await vault_database.rotate("odd")
                assert await pool.fetchval("SELECT 1") == 1
    """
    from .server import run_apart

    engine = run_apart(vault.connect(rotating_postgres))
    yield engine
    run_apart(engine.drop())
