"""``aiopqr demo``: it does what it claims, fails when an operation fails, and leaves neither a trace nor a password."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aiopqr import Parity
from aiopqr.cli import application
from aiopqr.cli.demo import load
from aiopqr.cli.demo.command import run_demo
from aiopqr.cli.demo.environment import Environment, PasswordChange, schedule
from aiopqr.cli.demo.pools import Options
from aiopqr.cli.demo.result import DemoResult, Figures
from aiopqr.cli.demo.run import Demo
from aiopqr.cli.demo.view import LiveScreen
from aiopqr.testing import PostgresServer
from aiopqr.testing.cluster import ADMIN_PASSWORD

BRIEF = Options(seconds=4.0, every=1.0, lifetime=0.5, workers=8, connections=4)
MARK = "hunted"


@dataclass
class Shown:
    """A run, and all its output."""

    result: DemoResult
    output: str
    picture: str
    tallest: int  # the most lines that a frame had


@pytest.fixture(scope="module", params=["lines", "live"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """A short comparison, into a pipe and on a small terminal, with passwords that can be searched for."""
    picture = tmp_path_factory.mktemp("demo") / "latency.svg"
    is_live = request.param == "live"
    console = Console(file=io.StringIO(), force_terminal=is_live, width=80, height=24)
    heights = [0]

    class Measured(LiveScreen):
        def _frame(self, run: Demo) -> Any:
            frame = super()._frame(run)
            heights.append(len(console.render_lines(frame)))
            return frame

    random = secrets.token_urlsafe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_urlsafe", lambda size=None: f"{MARK}-{random(size)}")
        patch.setattr("aiopqr.cli.demo.command.LiveScreen", Measured)
        result = asyncio.run(run_demo(dataclasses.replace(BRIEF, compare=True), console, picture))
    assert result is not None
    assert isinstance(console.file, io.StringIO)
    return Shown(result, console.file.getvalue(), picture.read_text(), max(heights))


def test_passwords_change_under_load_and_no_operation_fails(shown: Shown) -> None:
    result = shown.result
    assert (result.odd, result.even, result.both) == (1, 1, 1)
    assert result.ours.operations > 100
    assert (result.ours.failed, result.ours.books_balance, result.exit_code) == (0, True, 0)
    assert "PASSED: 3 rotations under load, no operation failed" in shown.output


def test_a_pool_that_knows_one_password_fails_beside_it(shown: Shown) -> None:
    assert shown.result.plain is not None
    assert shown.result.plain.errors["InvalidPasswordError"] > 0
    assert shown.result.plain.refused > shown.result.ours.refused
    assert "asyncpg's pool: operations are failing with InvalidPasswordError" in shown.output


def test_no_password_is_shown(shown: Shown) -> None:
    everything = shown.output + shown.picture + json.dumps(shown.result.as_json()) + repr(shown.result)
    assert MARK not in everything
    assert ADMIN_PASSWORD.reveal() not in everything


def test_the_picture_marks_each_rotation(shown: Shown) -> None:
    for label in ("odd", "even", "both, file 0.5 s late", "aiopqr p99"):
        assert f">{label}<" in shown.picture


def test_a_frame_fits_a_small_terminal(shown: Shown) -> None:
    assert shown.tallest < 24


async def test_a_rotation_that_the_pool_cannot_survive_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    async def botched(environment: Environment, rotation: PasswordChange) -> None:
        accounts = [account.username for account in environment.pair.credentials()]
        for username in accounts:
            await environment.server.set_password(username, "known to nobody")
        await environment.server.terminate(*accounts)

    monkeypatch.setattr(Environment, "rotate", botched)
    monkeypatch.setattr(load, "ACQUIRE_TIMEOUT", 0.3)
    console = Console(file=io.StringIO())
    result = await run_demo(dataclasses.replace(BRIEF, seconds=2.0), console, None)
    assert result is not None
    assert result.ours.failed > 0
    assert result.exit_code == 1
    assert "FAILED" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files that another user may enter: as root, the server runs as one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o711)
        yield Path(directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_ends_it_with_the_verdict_so_far_and_leaves_nothing(
    number: signal.Signals, temporary: Path, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiopqr", "demo", "--every", "0.5", "--picture", str(tmp_path / "picture.png")),
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    while b"password changed" not in (line := await process.stdout.readline()):
        assert line, "the demo ended before it changed a password"
    servers = list(temporary.glob("*/data/postmaster.pid"))
    assert len(servers) == 1
    postmaster = int(servers[0].read_text().split()[0])
    process.send_signal(number)
    output = (await process.stdout.read()).decode()
    assert await process.wait() == 130
    assert "INTERRUPTED after " in output
    assert "Traceback" not in output
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(postmaster, 0)


async def test_an_existing_server_is_left_as_it_was(server: PostgresServer, tmp_path: Path) -> None:
    async def things() -> list[Any]:
        return await server.execute("SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles ORDER BY 1")

    before = await things()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiopqr", "demo", "--seconds", "2", "--every", "0.5", "--json"),
        *("--dsn", server.dsn.replace("//", f"//{server.admin}@", 1), "--picture", str(tmp_path / "picture.png")),
        env={**os.environ, "AIOPQR_ADMIN_PASSWORD": server.admin_password.reveal()},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["passed"] is True
    assert await things() == before


@pytest.mark.parametrize("powers", ["", "CREATEROLE"])
async def test_a_role_that_may_not_set_the_stage_is_2_in_one_line(server: PostgresServer, powers: str) -> None:
    name = f"lame_{os.urandom(4).hex()}"
    await server.execute(f"CREATE ROLE {name} LOGIN {powers} PASSWORD '{server.admin_password.reveal()}'")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiopqr", "demo", "--plain", "--dsn", server.dsn.replace("//", f"//{name}@", 1)),
        env={**os.environ, "AIOPQR_ADMIN_PASSWORD": server.admin_password.reveal()},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    await server.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    assert process.returncode == 2
    [line] = err.decode().splitlines()
    assert "a superuser, or have CREATEDB and CREATEROLE" in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--dsn", f"postgresql://admin:{MARK}@localhost/db"], "--dsn must not contain a password"),
        (["--dsn", f"postgresql://admin@localhost/db?password={MARK}"], "--dsn must not contain a password"),
        (["--dsn", f"postgresql://admin:{MARK}"], "--dsn must look like postgresql://"),
        (["--dsn", f"mysql://{MARK}/"], "--dsn must look like postgresql://"),
        (["--seconds", "nan"], "--seconds must be at least 2"),
        (["--every", "0"], "--every must be at least 0.5"),
        (["--seconds", "3", "--every", "3"], "--every must be less than --seconds"),
        (["--picture", f"/nonexistent-{MARK}/picture.png"], "--picture"),
    ],
)
def test_what_cannot_be_tried_is_refused_by_the_name_of_its_option(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(application(["demo"]), ["demo", *arguments])
    assert result.exit_code == 2
    assert complaint in result.output
    assert "--picture" in complaint or MARK not in result.output


# The pure parts.


def test_the_default_schedule_changes_odd_and_even_in_turn_and_once_both() -> None:
    plan = schedule(30.0, 3.3)
    names = ["both" if rotation.is_both else str(rotation.parities[0]) for rotation in plan]
    assert names == ["odd", "even", "odd", "even", "both", "odd", "even", "odd"]
    assert [rotation.store_delay for rotation in plan if rotation.is_both] == [1.0]
    assert plan[-1].at <= 28.5  # and the run shows that it was survived


def test_a_single_account_is_changed_again_and_again_and_once_with_the_file_behind() -> None:
    plan = schedule(30.0, 3.3, single=True)
    assert {rotation.parities for rotation in plan} == {(Parity.ODD,)}
    assert [rotation.store_delay for rotation in plan if rotation.store_delay] == [1.0]
    assert not any(rotation.is_both for rotation in plan)


def test_the_shortest_schedule_has_one_rotation() -> None:
    assert schedule(2.0, 1.9) == (PasswordChange(1.9, (Parity.ODD,)),)


FINE = Figures(
    "aiopqr", 100, 0, p50=0.0, p99=0.0, p999=0.0, worst=0.0, silence=0.0, refused=1, by_log=True, most_open=4,
    transfers=10, books_balance=True,
)  # fmt: skip
GOOD = DemoResult(30.0, False, "Postgres 16", 20, 10, 2.0, planned=8, odd=4, even=3, both=1, behind=1.0, ours=FINE)


@pytest.mark.parametrize(
    ("result", "code", "headline"),
    [
        (GOOD, 0, "PASSED: 8 rotations under load"),
        (dataclasses.replace(GOOD, ours=dataclasses.replace(FINE, failed=1)), 1, "FAILED: 1 of 101 operations"),
        (dataclasses.replace(GOOD, ours=dataclasses.replace(FINE, books_balance=False)), 1, "FAILED: the database"),
        (dataclasses.replace(GOOD, ours=dataclasses.replace(FINE, operations=0)), 1, "FAILED: no operation ran"),
        (dataclasses.replace(GOOD, odd=0, even=0, both=0), 1, "FAILED: no password was changed"),
        (dataclasses.replace(GOOD, interrupted=True), 130, "INTERRUPTED after 8 rotations"),
        (dataclasses.replace(GOOD, interrupted=True, ours=dataclasses.replace(FINE, failed=1)), 1, "FAILED"),
    ],
)
def test_only_a_run_that_was_tried_and_lost_nothing_exits_with_0(result: DemoResult, code: int, headline: str) -> None:
    assert result.exit_code == code
    assert result.headline().startswith(headline)


def test_percentiles_are_right_to_two_percent() -> None:
    latencies = load.Latencies()
    for number in range(1, 1001):
        latencies.record(number / 1000)
    for share in (0.5, 0.99, 0.999):
        assert latencies.percentile(share) == pytest.approx(share, rel=0.02)
    assert latencies.percentile(1.0) == latencies.worst == 1.0
