"""Virtual environments of their own, and the Pythons at hand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TOP = Path(__file__).parent.parent
_HOME = TOP / ".envs"
VERSIONS = ("3.11", "3.12", "3.13", "3.14", "3.15")


def pythons(*more: str) -> dict[str, str]:
    """Each supported version (and those of ``more``) that is on PATH or in pyenv here, and can make environments."""
    found = {}
    for version in (*VERSIONS, *more):
        candidates = [*sorted(Path.home().glob(f".pyenv/versions/*/bin/python{version}"), reverse=True)]
        if on_path := shutil.which(f"python{version}"):
            candidates.append(Path(on_path))
        for candidate in candidates:
            if _succeeds(str(candidate), "-c", "import ensurepip, venv"):
                found[version] = str(candidate)
                break
    return found


def environment(name: str, *requirements: str, python: str = sys.executable, fresh: bool = False) -> str:
    """The Python of a virtual environment with ``requirements`` (pip's arguments), made anew if they changed."""
    folder = _HOME / name
    wanted = "\n".join((python, *requirements))
    stamp = folder / "requirements"
    if fresh or not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        program = str(folder / "bin/python")
        pip = [program, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "pip>=25.1"], check=True)
        subprocess.run([*pip, *requirements], check=True, cwd=TOP)
        stamp.write_text(wanted)
    return str(folder / "bin/python")


class Report:
    """One line for each thing that was tried, and whether all went well."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bool, str]] = []

    def run(self, what: str, *command: str | Path, cwd: Path = TOP, env: Mapping[str, str] | None = None) -> bool:
        """Run a command, show its output if it fails, and note how it ended."""
        began = time.monotonic()
        ran = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        summary = next((line for line in reversed(ran.stdout.splitlines()) if re.search(r"\d+ passed", line)), "")
        if ran.returncode:
            print(ran.stdout[-6000:], flush=True)
        self.note(what, ran.returncode == 0, f"{summary.strip('= ') or 'done'} ({time.monotonic() - began:.0f} s)")
        return ran.returncode == 0

    def note(self, what: str, ok: bool, detail: str = "") -> None:
        self.lines.append((what, ok, detail))
        print(f"{'ok    ' if ok else 'FAILED'} {what}{': ' if detail else ''}{detail}", flush=True)

    def __iter__(self) -> Iterator[tuple[str, bool, str]]:
        return iter(self.lines)

    def exit(self) -> None:
        failed = [what for what, ok, _ in self.lines if not ok]
        print(f"{len(self.lines) - len(failed)} passed, {len(failed)} failed")
        sys.exit(1 if failed else 0)


def try_packages(kind: str, packages: Mapping[str, Sequence[str]]) -> None:
    """Run the scenario of this kind (agent or consumer) with each package, or with those that the arguments name."""
    report = Report()
    scenario = TOP / f"tools/{kind}_scenario.py"
    for name in sys.argv[1:] or packages:
        program = environment(f"{kind}-{name}", "-e", ".[testing,sqlalchemy]", *packages[name])
        with tempfile.TemporaryDirectory() as scratch:
            report.run(name, "timeout", "120", program, scenario, name, cwd=Path(scratch))
    report.exit()


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
