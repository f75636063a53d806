"""Real servers with an account for each way to log in: one that speaks TLS, and two that were built without."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiopqr._login import proved
from aiopqr.testing import EmbeddedPostgres, NotSupported, PostgresServer, server_of
from aiopqr.testing.server import run_apart

# "tls" is the server that `--postgres` chose if that speaks TLS, and the system's otherwise.
KINDS = {"tls": "system", "16": "embedded", "18": "embedded18"}
PASSWORD = "correct horse battery"
HBA = """
host all by_md5 all md5
host all by_password all password
host all by_trust all trust
host all rejected all reject
hostssl all only_tls all scram-sha-256
host all only_tls all reject
host all all all scram-sha-256
local all all scram-sha-256
"""
ACCOUNTS = f"""
set password_encryption = 'md5';
create role by_md5 login password '{PASSWORD}';
set password_encryption = 'scram-sha-256';
create role by_password login password '{PASSWORD}';
create role by_scram login password '{PASSWORD}';
create role only_tls login password '{PASSWORD}';
create role by_trust login;
create role rejected login;
"""


class Server:
    """A server with those accounts, as the tests of logins see it."""

    def __init__(self, postgres: PostgresServer) -> None:
        self.postgres = postgres

    @property
    def port(self) -> int:
        return self.postgres.port

    @property
    def folder(self) -> Path:
        """Where its Unix socket is."""
        if self.postgres.socket_dir is None:
            raise NotSupported(f"{self.postgres!r} has no Unix socket that we know of")
        return Path(self.postgres.socket_dir)

    @property
    def address(self) -> dict[str, Any]:
        return {"host": self.postgres.host, "port": self.port, "database": "postgres"}

    @property
    def ca_file(self) -> str:
        assert self.postgres.ca_file is not None
        return self.postgres.ca_file

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca_file)

    def run(self, sql: str) -> Any:
        """Run ``sql`` as the superuser, and return the first value of its first row, if there is one."""
        rows = run_apart(self.postgres.execute(sql))
        return rows[0][0] if rows else None


async def prepare(postgres: PostgresServer, kind: str) -> None:
    lines = HBA.splitlines()
    if kind == "tls":
        await postgres.enable_tls()
    else:
        lines = [line for line in lines if not line.startswith("hostssl")]
    await postgres.set_hba(lines)
    await postgres.execute(ACCOUNTS)


@pytest.fixture(autouse=True)
def _nothing_is_proved() -> None:
    """All accounts have the same password, and one that was proved by SCRAM is not sent as plain text."""
    proved._digests.clear()


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[Callable[[str], Server]]:
    """``servers("16")`` is the server of that kind, started when a test first asks for it."""
    running: dict[str, Server] = {}

    def start(kind: str) -> Server:
        if kind not in running:
            chosen = pytestconfig.option.postgres
            in_a_container = kind == "tls" and chosen.startswith("testcontainers")
            postgres = server_of(chosen) if in_a_container else EmbeddedPostgres(KINDS[kind], max_connections=40)
            exits.enter_context(postgres)
            run_apart(prepare(postgres, kind))
            running[kind] = Server(postgres)
        return running[kind]

    with contextlib.ExitStack() as exits:
        yield start


@pytest.fixture(params=list(KINDS))
def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    """Each kind in turn."""
    return servers(request.param)


@pytest.fixture
def tls_server(servers: Callable[[str], Server]) -> Server:
    return servers("tls")
