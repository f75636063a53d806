"""Looks up host names in aiopqr's own threads. asyncio uses the default executor, which other code may have filled."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

from .. import _threads

_SHARED_FOR = 1.0  # for this many seconds, others join a lookup; after that, it may be hanging, so start a new one

_lookups: dict[tuple[asyncio.AbstractEventLoop, str, int], tuple[float, asyncio.Future[Any]]] = {}


def is_ip(host: str) -> bool:
    """Whether the host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def addresses_of(host: str, port: int, loop: asyncio.AbstractEventLoop) -> list[str]:
    """The addresses of a host, in the system's order. Raises ``socket.gaierror``."""
    if is_ip(host):
        return [host]
    key = loop, host, port
    begun, lookup = _lookups.get(key, (0.0, None))
    if lookup is None or loop.time() >= begun + _SHARED_FOR:
        for left in [key for key in list(_lookups) if key[0].is_closed()]:
            _lookups.pop(left, None)
        lookup = _threads.shared.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        _lookups[key] = loop.time(), lookup
        lookup.add_done_callback(lambda done: _forget(key, done))
    await asyncio.wait({lookup})
    found = lookup.result()
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _forget(key: tuple[asyncio.AbstractEventLoop, str, int], lookup: asyncio.Future[Any]) -> None:
    if not lookup.cancelled():
        lookup.exception()  # retrieved here, since those who asked may be gone
    if key in _lookups and _lookups[key][1] is lookup:
        del _lookups[key]
