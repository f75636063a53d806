"""The errors of test servers. Fixtures catch them to skip a test."""

from __future__ import annotations

from ..errors import AiopqrError


class ServerError(AiopqrError, RuntimeError):
    """A test server did not start, stop or accept its configuration. The text ends with the server's log."""


class NotAvailable(ServerError):
    """This kind of server is not available here. The text says what is missing, so use it as the reason of a skip."""


class NotSupported(ServerError):
    """This kind of server cannot do that. For example, a server named by a DSN cannot be restarted."""
