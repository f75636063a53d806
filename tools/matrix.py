"""Try aiopqr on each Python, Postgres and PgBouncer at hand: `make matrix`.

--write          put the result into docs/compatibility.md; what was not tried now keeps its line
--only TEXT      only the rows whose name contains TEXT
--debian SUITE   those of another Debian, in a chroot (as root): forky has Python 3.14, Postgres 18 and PgBouncer 1.26,
                 experimental has Postgres 19
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from aiopqr.testing import NotAvailable, PostgresServer, server_of

from .debian import clone_in, command_in, debian
from .environments import TOP, Report, environment, pythons

_PAGE = TOP / "docs/compatibility.md"
_BEGIN, _END = "<!-- make matrix: begin -->", "<!-- make matrix: end -->"
_OF_THE_LANGUAGE = ("tests/values", "tests/refresh", "tests/connect", "tests/login", "tests/pool")
_OF_THE_SERVER = ("tests/refusals", "tests/outages", "tests/login", "tests/rotation")
_REQUIREMENTS = ("-e", ".[testing,cli,aws,vault,sqlalchemy]", "--group", "test")
# For a Python that is too new for the embedded Postgres and moto.
_FEW = (
    *("-e", ".[cli,sqlalchemy]", "pytest>=8", "pytest-asyncio>=1.3", "pytest-timeout", "pytest-xdist", "hypothesis"),
    *("trustme", "uvloop", "httpx", "uvicorn", "fastapi", "pyyaml", "testcontainers"),
)
_PYTEST = ("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", "not proof")

Row = tuple[str, bool, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--debian", metavar="SUITE")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    report = Report()
    if options.debian:
        try_debian(report, options.debian, options.only)
    else:
        for rows in (rows_of_packages, rows_of_pythons, rows_of_servers):
            for name, command in rows(options.only):
                if options.only in name:
                    report.run(name, *command)
    if options.rows:
        options.rows.write_text(json.dumps(list(report)))
    if options.write:
        write(report)
    report.exit()


def try_debian(report: Report, suite: str, only: str) -> None:
    root = debian(suite)
    subprocess.run(command_in(root, "make", ".venv/.test"), check=True)
    inner = (".venv/bin/python", "-m", "tools.matrix", "--only", only, "--rows", "rows.json")
    subprocess.run(command_in(root, *inner), check=False)
    for name, ok, result in json.loads((clone_in(root) / "rows.json").read_text()):
        report.note(f"{name}, in Debian {suite}", ok, result)


def rows_of_packages(only: str) -> Iterator[tuple[str, list[str]]]:
    """aioboto3 pins an old aiobotocore: without it, a session of the newest one has to serve."""
    name = "the newest aiobotocore, without aioboto3"
    if only in name:
        more = ["hypothesis", "pytest-timeout", "pytest-xdist", "moto[server]"]
        program = environment("aiobotocore", "-e", ".[testing]", "aiobotocore>=3", *more)
        yield name, [program, *_PYTEST, "tests/sources/aws/test_source.py"]


def rows_of_pythons(only: str) -> Iterator[tuple[str, list[str]]]:
    for version, python in pythons("3.14t", "3.15t").items():
        name = f"Python {version}" + (" (free-threaded)" if version.endswith("t") else "")
        if only and not (name.startswith(only) or only.startswith(name)):
            continue
        program, postgres = environment_of(version, python)
        pytest = [*_PYTEST, f"--postgres={postgres}"]
        yield name, [program, *pytest, *_OF_THE_LANGUAGE]
        if has(program, "uvloop"):
            yield f"{name}, uvloop", [program, *pytest, "--loop=uvloop", "tests/pool"]
        if version >= "3.12":
            yield f"{name}, eager tasks", [program, *pytest, "--loop=eager", "tests/pool"]
        yield f"{name}, -X dev", [program, "-X", "dev", *pytest, "tests/pool"]
        yield f"{name}, -O", [program, "-O", *pytest, "-W", "ignore::pytest.PytestConfigWarning", "tests/pool"]


def environment_of(version: str, python: str) -> tuple[str, str]:
    """An environment with all that the tests use, or else with what they need, and the Postgres to use there."""
    try:
        return environment(f"python{version}", *_REQUIREMENTS, python=python), "embedded"
    except subprocess.CalledProcessError:
        return environment(f"python{version}", *_FEW, python=python), "system"


def has(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def rows_of_servers(only: str) -> Iterator[tuple[str, list[str]]]:
    of_debian = sorted(str(path.parent) for path in Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    for kind in (*of_debian, "embedded", "embedded18", "testcontainers"):
        if only and not only.startswith("Postgres"):
            continue
        try:
            server: PostgresServer = server_of(kind)
            with server:
                version = server.version
        except NotAvailable as exc:
            print(f"not here: {kind}: {exc}")
            continue
        origin = {"testcontainers": "in a container"}.get(kind, "Debian" if kind in of_debian else "embedded")
        name = f"Postgres {version} ({origin}), {pgbouncer()}"
        yield name, [sys.executable, *_PYTEST, f"--postgres={kind}", *_OF_THE_SERVER]


def pgbouncer() -> str:
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        return "no PgBouncer"
    said = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0]


def write(rows: Iterable[Row]) -> None:
    """Put the rows into the page's table, each in the place of the one of its name."""
    before, rest = _PAGE.read_text().split(_BEGIN)
    table, after = rest.split(_END)
    lines = {line.split(" | ")[0][2:]: line for line in table.splitlines()[4:] if line}
    today = datetime.datetime.now(datetime.UTC).date()
    for name, ok, result in rows:
        count = re.sub(r" in \d.*", "", result)  # how long it took says more of the machine
        lines[name] = f"| {name} | {'ok' if ok else 'FAILED'} | {count} | {today} |"
    table = "\n".join(["| with | result | tests | on |", "|---|---|---|---|", *(lines[name] for name in sorted(lines))])
    _PAGE.write_text(f"{before}{_BEGIN}\n\n{table}\n\n{_END}{after}")


if __name__ == "__main__":
    main()
