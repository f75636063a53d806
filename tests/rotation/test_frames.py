"""No frame of the driver, whose locals hold passwords and statements, leaves a rotator, ``check`` or a test tool."""

from __future__ import annotations

import ast
import asyncio
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiopqr
from aiopqr.cli.check.facts import look
from aiopqr.credentials import Credential, Secret
from aiopqr.rotation import Rotator
from aiopqr.rotation.connects import admin_by_dsn
from aiopqr.rotation.database import Database
from aiopqr.testing.server import PostgresServer

PACKAGE = Path(aiopqr.__file__).parent


def locals_of(exc: BaseException | None) -> Iterator[str]:
    """The locals in all frames of an exception and of those that led to it, as an error tracker shows them."""
    seen: set[int] = set()
    found = [traceback.TracebackException.from_exception(exc, capture_locals=True)] if exc else []
    while found:
        link = found.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        for frame in link.stack:
            yield from (frame.locals or {}).values()
        found += [one for one in (link.__cause__, link.__context__, *(link.exceptions or ())) if one]


@pytest.mark.parametrize("what", ["account", "admin", "check", "test tool"])
async def test_a_login_that_is_cut_off_leaves_no_password_in_any_frame(rig: Any, what: str) -> None:
    hidden = "hidden-" + "password"
    connected = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        dead = f"postgresql://127.0.0.1:{port}/app?sslmode=disable"
        account = Credential("app_odd", hidden)
        admin = admin_by_dsn(dead.replace("//", "//postgres@"), password=Secret(hidden))
        server = {"host": "127.0.0.1", "port": port, "admin": "postgres", "admin_password": Secret(hidden)}
        tool: Any = type("Tool", (), server)
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "account": lambda: Database(rig.admin, dead).login(account),
            "admin": lambda: Rotator(store=rig.store, admin=admin, verify=rig.postgres.dsn).plan(),
            "check": lambda: look(dead, account),
            "test tool": lambda: PostgresServer.admin_connect(tool, "app"),
        }

        async def cut_off() -> BaseException:
            task = asyncio.ensure_future(ways[what]())
            await connected.wait()
            task.cancel()
            try:
                await task
            except asyncio.CancelledError as exc:
                return exc
            raise AssertionError("not cut off")

        shown = list(locals_of(await cut_off()))
    assert shown
    assert not [text for text in shown if hidden in text]


class Calls(ast.NodeVisitor):
    """The calls of the driver that may carry a secret, but are not inside ``with no_frames()``."""

    def __init__(self) -> None:
        self.guarded = 0
        self.found: list[int] = []

    def visit_With(self, node: ast.With) -> None:
        guards = any("no_frames()" in ast.unparse(item.context_expr) for item in node.items)
        self.guarded += guards
        self.generic_visit(node)
        self.guarded -= guards

    def visit_Call(self, node: ast.Call) -> None:
        text = ast.unparse(node.func)
        connects = text in ("asyncpg.connect", "self._admin")
        # A constant of the module, or a literal, contains no secret.
        built = node.args and not (
            isinstance(node.args[0], ast.Constant) or (isinstance(node.args[0], ast.Name) and node.args[0].id.isupper())
        )
        executes = text.rpartition(".")[2] == "execute" and text not in ("self.execute", "server.execute") and built
        if (connects or executes) and not self.guarded:
            self.found.append(node.lineno)
        self.generic_visit(node)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_call_of_the_driver_that_may_carry_a_secret_drops_its_frames(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in ("_pool", "_connect", "demo", "integrations"):
        return  # these log in through _login, and execute what an application passed
    calls = Calls()
    calls.visit(ast.parse(path.read_text()))
    assert calls.found == []
