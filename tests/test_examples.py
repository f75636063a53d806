"""Every example runs as it stands, ends by itself, warns of nothing and shows no password."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# What each must print.
PRINTS = {
    "quickstart.py": r"request 3: served as",
    "fastapi_app.py": r"no request failed: \{.*(odd.*even|even.*odd).*\}\nhealth: \{'healthy': True",
    "sqlalchemy_orm.py": r"no order failed: \{.*(odd.*even|even.*odd).*\}",
    "kubernetes_file.py": r"(the Secret is swapped; new connections are of \['even', 'odd'\][^!]*){3}",
    "listen.py": r"(?s)(before \w+ is changed\nlistener: \(listening\)\nlistener: after.*){3}",
    "migrate_from_asyncpg.py": r"was changed: password authentication failed(.*\nAlternatingPool){3}",
    "migrate_from_psycopg_pool.py": r"psycopg_pool: (.*)\naiopqr:       \1",
    "prometheus_metrics.py": r'aiopqr_fallbacks_total\{db_client_connection_pool_name="orders"',
}

# Writes each new password to a file of the test's, so that a program that prints one is found out.
_NOTING = """
import os, runpy, sys
from aiopqr import credentials
made = credentials.Secret.__init__
def noting(self, content):
    made(self, content)
    with open(os.environ["NOTED"], "a") as file:
        print(content, file=file)
credentials.Secret.__init__ = noting
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


async def run(name: str, folder: Path) -> str:
    """What an example has printed, once it has ended without an error."""
    noted = folder / "noted"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", _NOTING, str(EXAMPLES / name)),
        env={**os.environ, "NOTED": str(noted)},
        stdout=PIPE,
        stderr=PIPE,
        cwd=folder,
    )
    try:
        async with asyncio.timeout(90):
            out, err = (stream.decode() for stream in await process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err
    assert not re.search("Traceback|Warning|never awaited|was destroyed", err), err
    passwords = set(noted.read_text().split())
    assert len(passwords) >= 2
    for password in passwords:
        assert password not in out + err
    return out


@pytest.mark.parametrize("name", PRINTS)
async def test_an_example_runs_and_shows_no_password(name: str, tmp_path: Path) -> None:
    out = await run(name, tmp_path)
    assert re.search(PRINTS[name], out), out


async def test_the_alerts_example_tells_each_thing_and_when_it_is_over(tmp_path: Path) -> None:
    alerts = [json.loads(line) for line in (await run("alerts.py", tmp_path)).splitlines() if line.startswith("{")]
    assert {(alert["alert"], alert["severity"]) for alert in alerts} == {
        ("account_refused", "warning"),
        ("account_refused", "resolved"),
        ("all_refused", "critical"),
        ("all_refused", "resolved"),
        ("pair_too_old", "warning"),
        ("pair_too_old", "resolved"),
        ("refresh_failed", "warning"),
        ("replacement_delayed", "warning"),
    }
    assert {alert["pool"] for alert in alerts} == {"orders"}


def test_every_example_is_run_by_a_test() -> None:
    tested_elsewhere = r"aws_.*|rotate_.*|vault"
    there = {path.name for path in EXAMPLES.glob("*.py") if not re.fullmatch(tested_elsewhere, path.stem)}
    assert there == {*PRINTS, "alerts.py"}
