"""Limits how much asyncio reads from a socket at a time."""

from __future__ import annotations

from typing import Any

PIECE = 64 * 1024


def read_in_pieces(transport: Any) -> None:
    """Make asyncio read no more than :data:`PIECE` bytes from the socket at a time.

    By default, it reads up to 256 KiB. For such a size, malloc maps new memory for each read and unmaps it afterwards,
    until the process happens to have freed a larger block. That takes two page faults and three system calls, which can
    cost the client more than the rest of a short query. With TLS, it happens twice. Other event loops reuse a buffer.
    """
    within_tls: Any = getattr(transport, "_ssl_protocol", None)
    for reader in (transport, within_tls):
        if getattr(reader, "max_size", 0) > PIECE:
            reader.max_size = PIECE
