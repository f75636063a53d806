"""Build the wheel and the sdist, and try both as their users will: `make release`.

--quick       only the newest Python at hand, and no environment for each extra
--keep DIR    leave the two files there
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from .environments import TOP, Report, environment, pythons

# Run in an empty environment: every public module can be imported, or says which of the other extras it needs.
IMPORT_ALL = """
import importlib, pkgutil, sys
import aiopqr
extra = sys.argv[1] if len(sys.argv) > 1 else None
count = 0
for module in pkgutil.walk_packages(aiopqr.__path__, "aiopqr."):
    if any(part.startswith("_") for part in module.name.split(".")[1:]):
        continue
    try:
        importlib.import_module(module.name)
        count += 1
    except aiopqr.errors.MissingExtra as exc:
        if extra and f"aiopqr[{extra}]" in str(exc):
            raise
    except ModuleNotFoundError as exc:
        if exc.name != "pytest" or module.name != "aiopqr.testing.plugin" or extra == "testing":
            raise
assert count > 20, count
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as scratch:
        try_release(report, Path(scratch), options.quick)
        if options.keep:
            shutil.copytree(Path(scratch) / "dist", options.keep, dirs_exist_ok=True)
    report.exit()


def try_release(report: Report, scratch: Path, quick: bool) -> None:
    dist = scratch / "dist"
    tools = environment("release", "--group", "release")
    if not report.run("build", tools, "-m", "build", "--outdir", dist):
        return
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    report.run("twine check", tools, "-m", "twine", "check", "--strict", wheel, sdist)
    report.run("check-wheel-contents", tools, "-m", "check_wheel_contents", wheel)
    workflows = sorted((TOP / ".github/workflows").glob("*.yml"))
    schema = ["--builtin-schema", "vendor.github-workflows"]
    report.run("check-jsonschema", tools, "-m", "check_jsonschema", *schema, *workflows)

    versions = pythons()
    for version, python in list(versions.items())[-1 if quick else 0 :]:
        for file in (wheel, sdist):
            kind = file.suffix.removeprefix(".")
            try_install(report, f"{kind} on Python {version}", str(file), python)
    for extra in () if quick else extras():
        try_install(report, f"wheel with [{extra}] alone", f"{wheel}[{extra}]", sys.executable, extra)

    shutil.unpack_archive(sdist, scratch)
    [unpacked] = (folder for folder in scratch.glob("aiopqr-*") if folder.is_dir())
    folders = ["tests/values", "tests/refresh", "tests/connect"] if quick else ["tests"]
    report.run("the sdist's own tests", sys.executable, "-m", "pytest", "-q", "-n", "2", *folders, cwd=unpacked)


def try_install(report: Report, what: str, requirement: str, python: str, extra: str = "") -> None:
    installed = environment("install", requirement, python=python, fresh=True)
    report.run(what, installed, "-W", "error", "-c", IMPORT_ALL, *filter(None, [extra]), cwd=Path("/"))


def extras() -> list[str]:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    return sorted(project["optional-dependencies"])


if __name__ == "__main__":
    main()
