"""The order of the layers, read from the imports, and what it costs to import the package."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "aiopqr"

# Imports only point down: a module imports what is on a line below its own and, within a package, what comes before it
# in the package's own list. A package whose modules are not listed is treated as a whole.
LAYERS: list[str] = [
    "errors",
    "_flaws",
    "credentials.secret",
    "credentials.account",
    "credentials.schema",
    "credentials.pair",
    "clock",
    "_threads",
    "_reading",
    "_trust",
    "options",
    "refusals",
    "_failures",
    "events.event",
    "events.logins",
    "events.fetches",
    "events.connections",
    "events.emitter",
    "stats",
    "sources",
    "_refresh.plan",
    "_refresh.quarantine",
    "_refresh.expiry",
    "_refresh.announcement",
    "_refresh.renaming",
    "_refresh.loops",
    "_refresh.reports",
    "_refresh.subscribers",
    "_refresh.fetching",
    "_refresh.feed",
    "_refresh.refresher",
    "_login.scram",
    "_login.certificate",
    "_login.proved",
    "_login.names",
    "_login.parsing",
    "_login.tls",
    "_login.keys",
    "_login.handshake",
    "_login.self_test",
    "_login.asyncpg_login",
    "_login.plain",
    "_connect.roles",
    "_connect.account_choice",
    "_connect.arguments",
    "_connect.outage",
    "_connect.logins",
    "_connect.state",
    "_connect.race",
    "_connect.attempts",
    "_connect.maker",
    "_connect.connector",
    "_pool.idle_messages",
    "_pool._asyncpg",
    "_pool.self_test",
    "_pool.stand_in",
    "_pool.waiters",
    "_pool.writers",
    "_pool.connection",
    "_pool.policy",
    "_pool.connections",
    "_pool.leases",
    "_pool.timers",
    "_pool.retirement",
    "_pool.replacement",
    "_pool.checks",
    "_pool.supply",
    "_pool.release",
    "_pool.acquire",
    "_pool.generic",
    "_pool.pool",
    "_pool.create",
    "rotation.errors",
    "rotation.passwords",
    "rotation.sql",
    "rotation.words",
    "rotation.stores",
    "rotation.gates",
    "rotation.plan",
    "rotation.connects",
    "rotation.database",
    "rotation.announcing",
    "rotation.remedies",
    "rotation.run",
    "rotation.rotator",
    "rotation.vault_roles",
    "rotation.aws_lambda",
    "__init__",
    "integrations",
    "testing",
    "cli",
    "__main__",
]
# Without event loop, socket or clock.
PURE = {
    "_flaws",
    "credentials.secret",
    "credentials.account",
    "credentials.schema",
    "credentials.pair",
    "errors",
    "_trust",
    "options",
    "refusals",
    "events.event",
    "events.logins",
    "events.fetches",
    "events.connections",
    "events.emitter",
    "stats",
    "_refresh.plan",
    "_refresh.quarantine",
    "_refresh.expiry",
    "_refresh.renaming",
    "_refresh.announcement",
    "_login.scram",
    "_login.certificate",
    "_login.proved",
    "_connect.roles",
    "_connect.account_choice",
    "_connect.outage",
    "_pool.idle_messages",
    "_pool.connection",
    "_pool.retirement",
}
LAYER_OF = {name: number for number, name in enumerate(LAYERS)}
MODULES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str | None:
    """The line above that a file belongs to; None for the ``__init__`` of a package whose modules have their own."""
    return layer_of_module(".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"))


def layer_of_module(module: str) -> str | None:
    parts = module.split(".")
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in LAYER_OF), None)


def imports_of(path: Path, *, lazy: bool) -> Iterator[str]:
    """The full names that a file imports; without ``lazy``, only those that are imported when it is."""
    package = ("aiopqr", *path.relative_to(PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text())
    for statement in ast.walk(tree) if lazy else at_import(tree):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = ".".join(package[: len(package) - statement.level + 1]) if statement.level else ""
            origin = ".".join(part for part in (base, statement.module) if part)
            yield from (f"{origin}.{alias.name}" for alias in statement.names)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def own(imported: str) -> set[str]:
    """The layers that an import of ours reaches. What a package's ``__init__`` hands on counts as its origin."""
    package, _, rest = imported.partition(".")
    if package != "aiopqr" or not rest:
        return set()
    if name := layer_of_module(rest):
        return {name}
    exported, _, symbol = rest.rpartition(".")
    init = PACKAGE.joinpath(*exported.split("."), "__init__.py") if exported else PACKAGE / "__init__.py"
    origins = (origin for origin in imports_of(init, lazy=True) if origin.endswith(f".{symbol}") and origin != imported)
    return set().union(*(own(origin) for origin in origins))


def test_every_module_has_its_layer() -> None:
    packages = {name.partition(".")[0] for name in LAYERS if "." in name}
    homeless = {path for path in MODULES if name_of(path) is None}
    assert homeless == {PACKAGE / package / "__init__.py" for package in packages}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    name = name_of(path)
    if name is None:  # an ``__init__`` that only hands on what its modules have
        assert {origin.rpartition(".")[0] for origin in imports_of(path, lazy=False)} <= {
            f"aiopqr.{path.parent.name}.{other.stem}" for other in path.parent.iterdir()
        } | {f"aiopqr.{path.parent.name}.stores"}
        return
    mine = LAYER_OF[name]
    reached = set().union(*(own(imported) for imported in imports_of(path, lazy=False)))
    upward = {other for other in reached if LAYER_OF[other] > mine}
    assert not upward, f"{path.name} of layer {name} imports {upward}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_pure_layers_have_neither_event_loop_nor_socket_nor_clock(name: str) -> None:
    banned = {"asyncio", "anyio", "socket", "time", "datetime", "threading", "logging"}
    # For gaierror; to write to the log, and for its levels; for the times that a store gives.
    dated = "credentials.account", "credentials.schema", "credentials.pair", "_refresh.expiry"
    times = {module: {"datetime"} for module in dated}
    allowed = {"refusals": {"socket"}, **times}.get(name, {"logging"} if name.startswith("events.") else set())
    path = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
    used = {imported.partition(".")[0] for imported in imports_of(path, lazy=True)}
    assert not used & (banned - allowed)
    if name == "refusals":
        attributes = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket"
        }
        assert all(attribute == "gaierror" or attribute.startswith("EAI_") for attribute in attributes)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_has_more_than_60_lines_after_its_signature_and_docstring(path: Path) -> None:
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS))
    long = {function.name: lines for function in functions if (lines := length_of_body(function)) > 60}
    assert not long


def length_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def run(code: str) -> dict[str, float]:
    process = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(process.stdout)
    return answer


MODULES_OF = (
    "import json, sys; before = set(sys.modules); import {}; print(json.dumps(sorted(set(sys.modules) - before)))"
)
TIME_OF = """
import json, time
start = time.process_time()
import asyncpg
middle = time.process_time()
import aiopqr
print(json.dumps({"asyncpg": middle - start, "aiopqr": time.process_time() - middle}))
"""


def test_importing_the_package_needs_only_asyncpg_and_anyio() -> None:
    ours = run(MODULES_OF.format("aiopqr"))
    theirs = run(MODULES_OF.format("asyncpg, anyio, anyio.to_thread"))
    outside = {name.partition(".")[0] for name in set(ours) - set(theirs)} - {"aiopqr"} - set(sys.stdlib_module_names)
    assert not outside


def test_importing_the_package_costs_about_as_much_as_importing_asyncpg() -> None:
    # A ratio, since a busy machine makes both slower. It is 0.9 to 1.0.
    assert min(times["aiopqr"] / times["asyncpg"] for times in (run(TIME_OF) for _ in range(5))) < 1.5


def test_contributing_draws_every_module_of_the_layers() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    drawing = text[text.index("## The layers") : text.index("## Four walks")]
    drawn = set(re.findall(r"\w+", drawing))
    assert [name for name in LAYERS if name != "__init__" and not {*name.split(".")} <= drawn] == []
