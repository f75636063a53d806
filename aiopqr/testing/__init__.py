"""For tests that want a real Postgres and passwords that change: a server, accounts, and a source that obeys.

The pytest plugin's fixture ``rotating_postgres`` has it all in one.
"""

from __future__ import annotations

from .binaries import Binaries
from .errors import NotSupported, ServerError, ServerUnavailable
from .postgres import EmbeddedPostgres
from .remote import ContainerPostgres, ExistingPostgres
from .rotating import RotatingPostgres
from .server import PostgresServer
from .source import HANG, ScriptedSource

__all__ = [
    "HANG",
    "Binaries",
    "ContainerPostgres",
    "EmbeddedPostgres",
    "ExistingPostgres",
    "NotSupported",
    "PostgresServer",
    "RotatingPostgres",
    "ScriptedSource",
    "ServerError",
    "ServerUnavailable",
    "server_of",
]


def server_of(kind: str) -> PostgresServer:
    """A server, not started yet: ``embedded`` (16), ``embedded18``, ``system``, ``testcontainers``, or a DSN.

    Raises :class:`ServerUnavailable`, which names what is missing.
    """
    if kind == "testcontainers":
        return ContainerPostgres()
    return ExistingPostgres(kind) if "://" in kind else EmbeddedPostgres(kind)
