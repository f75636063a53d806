"""Try aiopqr on each Python, Postgres and PgBouncer at hand: `make matrix`.

--write       put the result into docs/compatibility.md
--only TEXT   only the rows whose name contains TEXT
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from aiopqr.testing import NotAvailable, PostgresServer, server_of

from .environments import TOP, Report, environment, pythons

_PAGE = TOP / "docs/compatibility.md"
_BEGIN, _END = "<!-- make matrix: begin -->", "<!-- make matrix: end -->"
_OF_THE_LANGUAGE = ("tests/values", "tests/refresh", "tests/connect", "tests/login", "tests/pool")
_OF_THE_SERVER = ("tests/refusals", "tests/outages", "tests/login", "tests/rotation")
_REQUIREMENTS = ("-e", ".[testing,cli,aws,vault,sqlalchemy]", "--group", "test")
_PYTEST = ("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", "not proof")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    report = Report()
    for rows in (rows_of_packages, rows_of_pythons, rows_of_servers):
        for name, command in rows(options.only):
            if options.only in name:
                report.run(name, *command)
    if options.write:
        write(report)
    report.exit()


def rows_of_packages(only: str) -> Iterator[tuple[str, list[str]]]:
    """aioboto3 pins an old aiobotocore: without it, a session of the newest one has to serve."""
    name = "the newest aiobotocore, without aioboto3"
    if only in name:
        more = ["hypothesis", "pytest-timeout", "pytest-xdist", "moto[server]"]
        program = environment("aiobotocore", "-e", ".[testing]", "aiobotocore>=3", *more)
        yield name, [program, *_PYTEST, "tests/sources/aws/test_source.py"]


def rows_of_pythons(only: str) -> Iterator[tuple[str, list[str]]]:
    for version, python in pythons().items():
        if only and not only.startswith(f"Python {version}"):
            continue
        program = environment(f"python{version}", *_REQUIREMENTS, python=python)
        yield f"Python {version}", [program, *_PYTEST, *_OF_THE_LANGUAGE]
        yield f"Python {version}, uvloop", [program, *_PYTEST, "--loop=uvloop", "tests/pool"]
        if version >= "3.12":
            yield f"Python {version}, eager tasks", [program, *_PYTEST, "--loop=eager", "tests/pool"]
        yield f"Python {version}, -X dev", [program, "-X", "dev", *_PYTEST, "tests/pool"]
        yield (
            f"Python {version}, -O",
            [program, "-O", *_PYTEST, "-W", "ignore::pytest.PytestConfigWarning", "tests/pool"],
        )


def rows_of_servers(only: str) -> Iterator[tuple[str, list[str]]]:
    for kind in ("system", "embedded", "embedded18", "testcontainers"):
        if only and "Postgres" not in only:
            continue
        try:
            server: PostgresServer = server_of(kind)
            with server:
                version = server.version
        except NotAvailable as exc:
            print(f"not here: {kind}: {exc}")
            continue
        name = f"Postgres {version} ({kind}), {pgbouncer()}"
        yield name, [sys.executable, *_PYTEST, f"--postgres={kind}", *_OF_THE_SERVER]


def pgbouncer() -> str:
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        return "no PgBouncer"
    told = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout
    return told.splitlines()[0]


def write(report: Report) -> None:
    rows = "".join(f"| {what} | {'ok' if ok else 'FAILED'} | {told} |\n" for what, ok, told in report)
    today = datetime.datetime.now(datetime.UTC).date()
    table = f"{_BEGIN}\n\nAs of {today}:\n\n| with | result | tests |\n|---|---|---|\n{rows}\n{_END}"
    page = Path(_PAGE).read_text()
    if _BEGIN not in page:
        page += f"\n## What `make matrix` found\n\n{_BEGIN}\n{_END}\n"
    _PAGE.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: table, page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
