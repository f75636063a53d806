"""What tests of Vault share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiopqr.sources import VaultSource

PAIR = {
    "odd_username": "app_odd",
    "odd_password": "odd-hunter2",
    "even_username": "app_even",
    "even_password": "even-hunter2",
    "active_credential": "even",
}


@asynccontextmanager
async def closing(source: VaultSource) -> AsyncIterator[VaultSource]:
    try:
        yield source
    finally:
        await source.aclose()
