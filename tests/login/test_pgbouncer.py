"""Logins through PgBouncer, which plays the server's part itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from aiopqr._login import scram
from aiopqr._login.asyncpg_login import login
from aiopqr._login.keys import KeyCache
from aiopqr.credentials import Secret

from .conftest import PASSWORD, as_server, free_port

BOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
pytestmark = pytest.mark.skipif(BOUNCER is None, reason="no PgBouncer here")


@pytest.fixture(params=["scram-sha-256 verifier", "scram-sha-256 plain", "md5 plain"])
def bouncer(request: pytest.FixtureRequest, servers: Any) -> Iterator[tuple[str, int]]:
    server = servers("16")
    method, _, kept = request.param.partition(" ")
    port, identity = free_port(), as_server()
    folder: Path = server.folder / f"bouncer{port}"
    folder.mkdir()
    if identity:
        os.chown(folder, identity["user"], identity["group"])
    secret = scram.verifier(PASSWORD) if kept == "verifier" else PASSWORD
    (folder / "users.txt").write_text(f'"by_scram" "{secret}"\n')
    (folder / "bouncer.ini").write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={server.port} user=postgres\n[pgbouncer]\n"
        f"listen_addr=127.0.0.1\nlisten_port={port}\nauth_type={method}\nauth_file={folder}/users.txt\n"
        "unix_socket_dir=\npool_mode=session\nignore_startup_parameters=extra_float_digits\n"
    )
    process = subprocess.Popen(
        [str(BOUNCER), "-q", str(folder / "bouncer.ini")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **identity
    )
    try:
        ready = ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, check=False).returncode:
            assert process.poll() is None, process.communicate()[0]
        yield request.param, port
    finally:
        process.kill()
        process.communicate()


async def test_pgbouncer_lets_in_whom_asyncpg_it_lets_in(bouncer: tuple[str, int]) -> None:
    kind, port = bouncer
    cache = KeyCache()
    address = {"host": "127.0.0.1", "port": port, "database": "postgres", "ssl": False, "timeout": 20.0}

    async def enter(password: str, cache: KeyCache | None) -> Any:
        return await login(asyncpg.connect, **address, user="by_scram", password=Secret(password), cache=cache)

    for chosen in (cache, cache, None):
        con = await enter(PASSWORD, chosen)
        assert await con.fetchval("select 1") == 1
        await con.close()
    assert bool(cache) == kind.startswith("scram")
    errors = []
    for chosen in (cache, None):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await enter("wrong", chosen)
        errors.append((type(caught.value), caught.value.sqlstate, str(caught.value)))
    assert errors[0] == errors[1]
    assert asyncio.all_tasks() == {asyncio.current_task()}
