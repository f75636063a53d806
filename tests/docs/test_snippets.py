"""Every Python snippet of README and documentation, and every example, type-checks; snippets that are programs run."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiopqr.testing import RotatingPostgres

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "tests" / "typing" / "api.py"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Names that a snippet may use without saying where they come from.
PREAMBLE = """
from typing import Any
import asyncpg
import aiopqr
from aiopqr.sources import CredentialSource
def _given() -> Any: ...
dsn: str = _given()
source: CredentialSource = _given()
pool: aiopqr.AlternatingPool = _given()
"""
# Programs in the documentation that a test can run with its own server and secret.
RUNNABLE = re.compile(r"^asyncio\.run\(main\(\)\)$", flags=re.MULTILINE)
DSN = re.compile(r"postgresql(\+asyncpg)?://(localhost|127\.0\.0\.1|db\.internal)[^\"'\s]*")
SECRET = re.compile(r"(?<=\")[^\"\s]*(orders|pair)\.json(?=\")|/run/secrets/orders\b")


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    code: str

    @property
    def name(self) -> str:
        return f"{re.sub(r'[^a-z0-9]+', '_', self.page.lower())}_{self.line}"


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r"^( *)```python[^\n]*\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, found.start()) + 1
            yield Snippet(str(page.relative_to(ROOT)), line, textwrap.dedent(found[2]))


SNIPPETS = list(snippets())


def as_module(snippet: Snippet) -> str:
    """The snippet as a module: code that awaits at the top level goes into a function, as in a notebook."""
    tree = ast.parse(snippet.code)  # raises SyntaxError for anything but Python, except for a top-level await
    imports = "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    try:
        compile(snippet.code, snippet.page, "exec")
    except SyntaxError:
        return f"{PREAMBLE}\n{imports}\nasync def snippet() -> None:\n{textwrap.indent(snippet.code, '    ')}"
    return f"{PREAMBLE}\n{snippet.code}"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snippets")
    for snippet in SNIPPETS:
        (folder / f"{snippet.name}.py").write_text(as_module(snippet))
    return folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.name)
def test_a_snippet_is_python(snippet: Snippet) -> None:
    ast.parse(snippet.code)


@pytest.mark.timeout(400)  # without a cache, and with the machine's other cores busy
def test_every_snippet_and_example_passes_mypy_strict(modules: Path) -> None:
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--ignore-missing-imports"]
    # Examples define functions without using them, rebind names of the preamble, and use packages that are not here.
    relaxed = ["--disable-error-code=no-redef", "--disable-error-code=empty-body"]
    relaxed += ["--allow-subclassing-any", "--allow-untyped-decorators"]
    cache = ["--cache-dir", str(ROOT / ".mypy_cache" / "snippets")]
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed: pip install mypy")
    process = subprocess.run(
        [*mypy, *relaxed, *cache, "--config-file=", *map(str, sorted(modules.iterdir())), *map(str, EXAMPLES)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.timeout(400)
def test_every_snippet_and_example_passes_pyright(modules: Path) -> None:
    pyright = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("basedpyright is not installed: pip install basedpyright")
    settings = {
        "include": [str(modules), *map(str, EXAMPLES)],
        "enableTypeIgnoreComments": False,  # which are mypy's
        "reportUnnecessaryTypeIgnoreComment": "error",
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
        "reportRedeclaration": False,
        "reportMissingImports": False,
        "reportReturnType": "error",
    }
    project = modules.parent / "pyrightconfig.json"
    project.write_text(json.dumps(settings))
    process = subprocess.run(
        [pyright, "--project", str(project), "--pythonpath", sys.executable, "--outputjson"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    found = json.loads(process.stdout)["generalDiagnostics"]
    errors = [f"{Path(one['file']).name}: {one['message']}" for one in found if one["severity"] == "error"]
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize(
    "snippet",
    [one for one in SNIPPETS if RUNNABLE.search(one.code) and "FileSource(" in one.code],
    ids=lambda snippet: snippet.name,
)
def test_a_program_runs_as_it_stands(snippet: Snippet, rotating_postgres: RotatingPostgres, tmp_path: Path) -> None:
    secret = tmp_path / "pair.json"
    pair = rotating_postgres.pair
    assert pair.odd
    assert pair.even
    keys = {"odd_username": pair.odd.username, "odd_password": pair.odd.password.reveal()}
    keys |= {"even_username": pair.even.username, "even_password": pair.even.password.reveal()}
    secret.write_text(json.dumps({**keys, "active_credential": "odd"}))
    dsn = rotating_postgres.dsn
    code = DSN.sub(lambda found: dsn.replace("postgresql", f"postgresql{found[1] or ''}", 1), snippet.code)
    code = SECRET.sub(str(secret), code)
    environment = {"DATABASE_URL": dsn, "CREDENTIALS_FILE": str(secret), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    if "sqlalchemy" in code:
        environment["DATABASE_URL"] = dsn.replace("postgresql", "postgresql+asyncpg", 1)
    program = tmp_path / "program.py"
    program.write_text(code)
    process = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    if "needs an optional dependency" in process.stderr:
        pytest.skip(process.stderr.strip().splitlines()[-1])
    assert process.returncode == 0, process.stderr
