"""The command line's entry: quick, and clear about what is missing."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import aiopqr
from aiopqr import cli
from aiopqr.errors import AiopqrError, MissingExtra


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command in its own process, after the statements ``before``."""
    code = (
        f"import sys; {before or 'pass'}\nsys.argv[1:] = {list(arguments)!r}\nfrom aiopqr.__main__ import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_help_lists_every_command_without_importing_any() -> None:
    loaded = "import atexit; atexit.register(lambda: print([m for m in sys.modules if m.startswith('aiopqr.cli.')]))"
    result = run("--help", before=loaded)
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("demo", "check", "rotate", "setup"))
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_cli_extra_it_says_what_to_install(package: str) -> None:
    result = run("demo", before=f"sys.modules[{package!r}] = None")
    assert (result.returncode, result.stdout) == (2, "")
    assert "pip install 'aiopqr[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_version_is_shown() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"aiopqr {aiopqr.__version__}\n")


def test_an_unknown_command_is_a_usage_error() -> None:
    assert run("rotte").returncode == 2


def test_a_command_that_an_installation_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "absent", "Never there.")
    with pytest.raises(AiopqrError, match="has no `aiopqr absent`"):
        cli.load("absent")
    with pytest.raises(SystemExit) as ended:
        cli.run(["absent"])
    assert ended.value.code == 2


def test_a_command_whose_dependency_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named 'rich' ({name})", name="rich")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"aiopqr\[demo\]"):
        cli.load("demo")
