"""Tools for tests that need a real Postgres and changing passwords: servers, accounts, and a scriptable source.

The pytest plugin's fixture ``rotating_postgres`` combines them.
"""

from __future__ import annotations

from .binaries import Binaries
from .container import ContainerPostgres
from .errors import NotAvailable, NotSupported, ServerError
from .postgres import EmbeddedPostgres
from .remote import ExistingPostgres
from .rotating import RotatingPostgres
from .server import PostgresServer
from .source import HANG, ScriptedSource
from .vault import Vault
from .vault_database import VaultDatabase

__all__ = [
    "HANG",
    "Binaries",
    "ContainerPostgres",
    "EmbeddedPostgres",
    "ExistingPostgres",
    "NotAvailable",
    "NotSupported",
    "PostgresServer",
    "RotatingPostgres",
    "ScriptedSource",
    "ServerError",
    "Vault",
    "VaultDatabase",
    "server_of",
]


def server_of(kind: str) -> PostgresServer:
    """Make a server of the given kind, without starting it.

    ``kind`` is ``embedded`` (Postgres 16), ``embedded18``, ``system``, ``testcontainers``, ``testcontainers:IMAGE``, or
    a DSN. Raises :class:`NotAvailable`, with a text that says what is missing.
    """
    name, _, image = kind.partition(":")
    if name == "testcontainers":
        return ContainerPostgres(image)
    return ExistingPostgres(kind) if "://" in kind else EmbeddedPostgres(kind)
