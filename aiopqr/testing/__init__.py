"""For tests that want a real Postgres and passwords that change: a server, accounts, and a source that obeys."""

from .binaries import Binaries
from .errors import NotSupported, ServerError, ServerUnavailable
from .postgres import EmbeddedPostgres
from .server import PostgresServer

__all__ = ["Binaries", "EmbeddedPostgres", "NotSupported", "PostgresServer", "ServerError", "ServerUnavailable"]
