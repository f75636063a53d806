"""What goes wrong with a test server: it cannot be had, it did not start, or it cannot do what a test asks of it.

Apart from the servers because fixtures catch these to skip, whichever kind of server it was.
"""

from __future__ import annotations

from ..errors import AiopqrError


class ServerError(AiopqrError, RuntimeError):
    """A test server did not start, stop or take its configuration. The text ends with the server's log."""


class NotAvailable(ServerError):
    """This kind of server cannot be had here. The text names what is missing: the reason of a skip."""


class NotSupported(ServerError):
    """This kind of server cannot do that: a DSN's log cannot be read, nor can it be restarted."""
