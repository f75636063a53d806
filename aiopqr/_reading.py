"""How much asyncio reads from a socket at a time."""

from __future__ import annotations

from typing import Any

PIECE = 64 * 1024


def read_in_pieces(transport: Any) -> None:
    """Have asyncio ask the socket for no more than :data:`PIECE` bytes at a time.

    It asks for 256 KiB. For so much, malloc maps new memory for each read and unmaps it afterwards, until the process
    happens to have freed a larger block: two page faults and three system calls, which can cost more than all the rest
    of what a short query costs the client. With TLS it happens twice. Other event loops have a buffer that they keep.
    """
    within_tls: Any = getattr(transport, "_ssl_protocol", None)
    for reader in (transport, within_tls):
        if getattr(reader, "max_size", 0) > PIECE:
            reader.max_size = PIECE
