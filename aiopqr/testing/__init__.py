"""For tests that need a real Postgres and passwords that change: servers, accounts, and a source that a test scripts.

The fixture ``rotating_postgres`` of the pytest plugin combines them.
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
    """A server that is not started yet: ``embedded`` (16), ``embedded18``, ``system``, ``testcontainers``, or a DSN.

    ``testcontainers:IMAGE`` names the image of the container.

    Raises :class:`NotAvailable`, with a text that says what is missing.
    """
    name, _, image = kind.partition(":")
    if name == "testcontainers":
        return ContainerPostgres(image)
    return ExistingPostgres(kind) if "://" in kind else EmbeddedPostgres(kind)
