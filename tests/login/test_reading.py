"""How much asyncio reads at a time from a connection that aiopqr has logged in."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import asyncpg
import pytest

from aiopqr._login.asyncpg_login import login
from aiopqr._reading import PIECE, read_in_pieces
from aiopqr.credentials import Secret

PASSWORD = "correct horse battery"
QUERIES = 300

FAULTS = f"""
import asyncio, resource, sys
import asyncpg
from aiopqr._login.asyncpg_login import login
from aiopqr.credentials import Secret

async def main():
    host, port = sys.argv[1:]
    where = dict(host=host, port=int(port), database="postgres", ssl="require")
    con = await login(asyncpg.connect, user="by_scram", password=Secret({PASSWORD!r}), **where)
    for _ in range(50):
        await con.fetchval("SELECT 1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({QUERIES}):
        await con.fetchval("SELECT 1")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    await con.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["tcp", "unix", "tls"])
async def test_asyncio_reads_no_more_than_a_piece_at_a_time(tls_server: Any, how: str) -> None:
    where = {**tls_server.address, "ssl": tls_server.tls if how == "tls" else "disable"}
    if how == "unix":
        where["host"] = str(tls_server.folder)
    con = await login(asyncpg.connect, user="by_scram", password=Secret(PASSWORD), timeout=20.0, **where)
    try:
        transport: Any = con._transport
        reader = getattr(transport, "_ssl_protocol", transport)
        assert reader.max_size == PIECE
        assert await con.fetchval("SELECT repeat('x', 1000000)") == "x" * 1_000_000
    finally:
        await con.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's malloc")
def test_a_read_maps_no_memory(tls_server: Any) -> None:
    # Once set, the limit stays, as in a process that has not freed a large block yet.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    call = [sys.executable, "-c", FAULTS, tls_server.postgres.host, str(tls_server.port)]
    faults = subprocess.run(call, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout
    assert int(faults) < QUERIES  # otherwise four for each query


def test_a_transport_of_another_loop_is_left_alone() -> None:
    read_in_pieces(object())
