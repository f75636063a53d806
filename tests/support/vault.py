"""What tests of Vault share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiopqr.sources import VaultSource
from aiopqr.testing import PostgresServer, Vault

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


async def begin(
    server: PostgresServer, *program: str, url: str, token: str, code: str = ""
) -> asyncio.subprocess.Process:
    """Start ``aiopqr`` as an operator would, with what it needs in the environment. ``code`` runs before it."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "AIOPQR", "VAULT", "BAO"))}
    start = ("-c", f"{code}\nfrom aiopqr.__main__ import main\nmain()") if code else ("-m", "aiopqr")
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *start, *program),
        env={
            **keep,
            "VAULT_ADDR": url,
            "VAULT_TOKEN": token,
            "AIOPQR_ADMIN_PASSWORD": server.admin_password.reveal(),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process) -> tuple[int, Any, str]:
    """Its exit code, the JSON on its standard output, and its standard error."""
    out, err = await process.communicate()
    return process.returncode or 0, json.loads(out or "{}"), err.decode()


async def run(
    server: PostgresServer, vault: Vault, *arguments: str, token: str | None = None, url: str | None = None
) -> tuple[int, Any, str]:
    """Run ``aiopqr … --json`` to its end."""
    token = token or vault.token.reveal()
    return await end(await begin(server, *arguments, "--json", url=url or vault.url, token=token))


class Between:
    """A proxy in front of Vault. It answers a request with 500 ``instead`` of passing it on, or ``after`` Vault did it.

    Each is a part of a path. ``then`` is called, once, before that answer; without ``fails`` it is Vault's own.
    """

    def __init__(self, vault: Vault) -> None:
        self.url = ""
        self.instead = self.after = "none"
        self.fails = True
        self.then: Any = None
        self._vault = vault

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, bytes]:
        status, content = 500, b'{"errors": ["internal error"]}'
        if self.instead not in path:
            kept = {
                name: headers[name] for name in ("X-Vault-Token", "X-Vault-Request", "Content-Type") if headers[name]
            }
            request = urllib.request.Request(self._vault.url + path, body or None, kept, method=method)
            try:
                with urllib.request.urlopen(request, timeout=30.0) as answer:
                    passed = answer.status, answer.read()
            except urllib.error.HTTPError as exc:
                passed = exc.code, exc.read()
                exc.close()
            if self.after not in path:
                return passed
            if not self.fails:
                status, content = passed
        then, self.then = self.then, None
        if then:
            then()
        return status, content

    @classmethod
    @contextlib.contextmanager
    def serving(cls, vault: Vault) -> Iterator[Between]:
        between = cls(vault)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass_on()

            def do_POST(self) -> None:
                self._pass_on()

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content = between.answer(self.command, self.path, self.headers, body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        between.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield between
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
