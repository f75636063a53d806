"""The order of the layers, read from the imports, and what it costs to import the package."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "aiopqr"

# Imports point down only, or sideways where the order below allows it. The parts of a layer stand in their own order.
LAYERS: list[list[str]] = [
    ["credentials", "errors"],
    ["refusals", "events", "stats"],
    ["alternation", "refreshing", "lifetimes", "options", "scram"],
    ["tasks", "_asyncpg", "contexts", "sources", "refresher"],
    ["handshake", "rehearsal", "login", "desk", "connecting", "connector"],
    ["turnstile", "sessions", "watch", "replacement", "checkout", "pool", "rotation"],
    ["__init__", "integrations", "testing", "cli", "__main__"],
]
PURE = {name for layer in LAYERS[:3] for name in layer}
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The module, or folder, of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def own(imported: str) -> str | None:
    package, _, rest = imported.partition(".")
    name = rest.partition(".")[0]
    return name if package == "aiopqr" and name in LAYER_OF else None


def test_every_module_has_its_layer() -> None:
    assert {name_of(path) for path in MODULES} <= set(LAYER_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    mine = LAYER_OF[name_of(path)]
    upward = {name for imported in imports_of(path, lazy=False) if (name := own(imported)) and LAYER_OF[name] > mine}
    assert not upward, f"{path.name} of layer {mine} imports {upward}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_pure_layers_have_neither_event_loop_nor_socket_nor_clock(name: str) -> None:
    banned = {"asyncio", "anyio", "socket", "time", "datetime", "threading", "logging"}
    allowed = {"refusals": {"socket"}, "events": {"logging"}}.get(name, set())  # for gaierror; to tell the log
    path = PACKAGE / f"{name}.py"
    used = {imported.partition(".")[0] for imported in imports_of(path, lazy=True)}
    assert not used & (banned - allowed)
    if name == "refusals":
        attributes = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket"
        }
        assert all(attribute == "gaierror" or attribute.startswith("EAI_") for attribute in attributes)


def test_modules_import_nothing_in_a_circle() -> None:
    graph = {
        name: {
            target
            for path in MODULES
            if name_of(path) == name
            for imported in imports_of(path, lazy=False)
            if (target := own(imported)) and target != name
        }
        for name in LAYER_OF
        if name != "__init__"
    }
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


def run(code: str) -> dict[str, float]:
    told = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(told.stdout)
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


@pytest.mark.proof
def test_importing_the_package_adds_at_most_30_ms_to_asyncpg() -> None:
    # CPU time, and the best of several runs: what else the machine does only ever adds. It still adds something.
    limit = 0.030 if os.environ.get("AIOPQR_PROOF") else 0.045
    assert min(run(TIME_OF)["aiopqr"] for _ in range(7)) <= limit
