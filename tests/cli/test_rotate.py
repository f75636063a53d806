"""``aiopqr rotate`` as cron runs it: a process, its exit codes, what it prints, and what it never does."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiopqr.cli import application
from aiopqr.cli.rotate import rotate
from aiopqr.cli.rotate.command import perform
from aiopqr.cli.rotate.output import Output
from aiopqr.credentials import Credential, Parity
from aiopqr.rotation import FileStore, Gate, Rotator, StoreError
from aiopqr.testing import RotatingPostgres

ODD, EVEN = Parity.ODD, Parity.EVEN


@dataclass
class Cli:
    """The command on a fresh database, with the pair in a file."""

    postgres: RotatingPostgres
    path: Path

    @property
    def store(self) -> FileStore:
        return FileStore(self.path)

    async def __call__(self, *arguments: str, stdin: str | None = None, **env: str) -> tuple[int, str, str]:
        server = self.postgres.server
        given = ["--admin", server.dsn.replace("//", f"//{server.admin}@", 1), "--dsn", self.postgres.dsn]
        given += ["--file", str(self.path), *(() if "--announce" in arguments else ("--announce", "0")), *arguments]
        if stdin is None and not env:
            env = {"AIOPQR_ADMIN_PASSWORD": server.admin_password.reveal()}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "AIOPQR"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiopqr", "rotate", *given),
            env={**clean, **env},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate((stdin or "").encode())
        output = out.decode() + err.decode()
        secrets = [
            server.admin_password,
            *(account.password for account in (await self.store.read()).pair.credentials()),
        ]
        assert not [secret for secret in secrets if secret.reveal() in output]
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
async def cli(postgres: RotatingPostgres, tmp_path: Path) -> Cli:
    cli = Cli(postgres, tmp_path / "pair.json")
    await cli.store.create(postgres.pair, changed_at=datetime.now(UTC) - timedelta(hours=1))
    return cli


async def test_done_is_0_and_tells_each_step(cli: Cli) -> None:
    before = (await cli.store.read()).pair
    code, out, err = await cli()
    assert (code, out) == (0, f"{before.even.username}: password changed\n")
    assert err.splitlines() == [
        f"rotate {before.even.username} (even)",
        "all gates passed, and no other rotation is running",
        "the new password is staged in the store",
        "the database has the new password",
        "a login with it succeeded over the applications' path",
        "the store now has it as the account's current password",
    ]
    assert (await cli.store.read()).pair.even != before.even


async def test_a_refusal_is_3_and_tells_the_gate_its_numbers_and_its_flag(cli: Cli) -> None:
    assert (await cli())[0] == 0
    code, out, err = await cli()
    assert (code, out) == (3, "")
    assert "refused [too-soon]" in err
    assert "it can take 1980 s" in err
    assert "--force-too-soon overrides this" in err
    code, _, err = await cli("--force-too-soon")
    assert code == 0
    assert "overridden: " in err
    assert "all gates passed" not in err
    assert "all other gates passed" in err


async def test_an_interrupted_rotation_that_was_finished_is_4(cli: Cli) -> None:
    secret = await cli.store.read()
    await cli.store.stage(secret, Credential(secret.pair.odd.username, "staged"))
    code, out, _ = await cli()
    assert code == 4
    assert "finished an interrupted rotation" in out
    assert (await cli.store.read()).pair.odd.password.reveal() == "staged"


async def test_failed_and_undone_is_5(cli: Cli, postgres: RotatingPostgres) -> None:
    name = f"{postgres.owner}_clerk"
    await postgres.server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'clerk' IN ROLE pg_read_all_stats")
    before = (await cli.store.read()).pair
    try:
        admin = postgres.server.dsn.replace("//", f"//{name}@", 1)
        code, out, err = await cli("--admin", admin, PGPASSWORD="clerk")
    finally:
        await postgres.server.execute(f"DROP ROLE {name}")
    assert (code, out) == (5, "")
    assert "was undone" in err
    assert (await cli.store.read()).pair == before


async def test_what_could_not_be_tried_is_2_and_changes_nothing(cli: Cli) -> None:
    before = cli.path.read_bytes()
    code, out, err = await cli("--admin", "postgresql://nobody@127.0.0.1:1/postgres")
    assert (code, out) == (2, "")
    assert "the admin role cannot connect" in err
    assert cli.path.read_bytes() == before


@pytest.mark.parametrize("broken", ["store", "admin"])
async def test_what_fails_between_the_plan_and_the_first_change_is_2(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before, server, output = cli.path.read_bytes(), cli.postgres.server, Output()
    store = cli.store

    async def admin() -> Any:
        if broken == "admin" and output._plan is not None:
            raise ConnectionRefusedError("down")
        return await server.admin_connect()

    async def read() -> Any:
        if broken == "store" and output._plan is not None:
            raise StoreError("no route")
        return await FileStore.read(store)

    monkeypatch.setattr(store, "read", read)
    rotator = Rotator(admin=admin, verify=cli.postgres.dsn, store=store, announce=0.0, listener=output.step)
    assert await perform(rotator, output, None, []) == 2
    assert cli.path.read_bytes() == before


async def test_a_dry_run_prints_the_plan_and_changes_nothing(cli: Cli) -> None:
    before = cli.path.read_bytes()
    code, out, _ = await cli("--dry-run", "--account", "odd")
    assert code == 0
    assert out.startswith("rotate ")
    assert "1. generate a password" in out
    assert cli.path.read_bytes() == before


async def test_json_tells_the_plan_with_every_objection_and_number(cli: Cli) -> None:
    code, out, _ = await cli("--dry-run", "--json", "--max-lifetime", "7200", "--force-too-soon")
    assert code == 0
    report = json.loads(out)
    assert (report["outcome"], report["action"], report["account"]) == ("planned", "rotate", "even")
    [objection] = report["objections"]
    assert (objection["gate"], objection["needed"], objection["overridden"]) == ("too-soon", 7380.0, True)


async def test_json_tells_the_outcome(cli: Cli) -> None:
    code, out, _ = await cli("--json", "--end-sessions-after", "0")
    assert code == 0
    report = json.loads(out)
    assert (report["outcome"], report["account"], report["sessions_ended"]) == ("done", "even", 0)
    assert datetime.fromisoformat(report["changed_at"]) == (await cli.store.read()).even_changed_at
    code, out, _ = await cli("--json")
    assert code == 3
    assert json.loads(out)["outcome"] == "refused"


@pytest.mark.usefixtures("heeds_sigint")
async def test_interrupted_is_130_and_leaves_no_traceback(cli: Cli) -> None:
    connected = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "aiopqr",
                "rotate",
                "--admin",
                f"postgresql://a@127.0.0.1:{port}/x?sslmode=disable",
            ),
            *("--dsn", "postgresql://127.0.0.1/x", "--file", str(cli.path)),
            env={**os.environ, "AIOPQR_ADMIN_PASSWORD": "x"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await connected.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"aiopqr rotate: interrupted: nothing was changed\n")


async def test_interrupted_while_announcing_says_where_it_stands_and_the_same_command_finishes_it(cli: Cli) -> None:
    server = cli.postgres.server
    command = ["rotate", "--admin", server.dsn.replace("//", f"//{server.admin}@", 1), "--dsn", cli.postgres.dsn]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiopqr", *command, "--file", str(cli.path), "--announce", "300"),
        env={**os.environ, "AIOPQR_ADMIN_PASSWORD": server.admin_password.reveal()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    while b"waiting 300 s for pools" not in await process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert b"interrupted: the rotation of" in err
    assert b"run the same command again to finish it" in err
    code, _, err = await cli("--announce", "0.1")
    assert code == 4
    assert "waiting" not in err  # starting the second process took longer than that


@pytest.mark.parametrize("way", ["AIOPQR_ADMIN_PASSWORD", "PGPASSWORD", "PGPASSFILE", "--password-stdin"])
async def test_the_admin_password_comes_by_environment_passfile_or_standard_input(cli: Cli, way: str) -> None:
    server = cli.postgres.server
    password = server.admin_password.reveal()
    if way == "--password-stdin":
        code, _, err = await cli(way, stdin=f"{password}\n")
    elif way == "PGPASSFILE":
        passfile = cli.path.with_name("pgpass")
        passfile.write_text(f"*:*:*:{server.admin}:{password}\n")
        passfile.chmod(0o600)
        code, _, err = await cli(PGPASSFILE=str(passfile))
    else:
        code, _, err = await cli(**{way: password})
    assert code == 0, err


async def test_a_change_time_that_is_not_known_is_taken_on_the_operators_word(cli: Cli) -> None:
    document = json.loads(cli.path.read_text())
    cli.path.write_text(json.dumps({k: v for k, v in document.items() if not k.endswith("_changed_at")}))
    assert (await cli())[0] == 3
    assert (await cli("--assume-changed-before", "2025-01-01T00:00:00Z"))[0] == 0


def invoke(*arguments: str) -> Any:
    line = ["rotate", *arguments]
    return CliRunner().invoke(application(line), line)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://admin:s3cr3t@db/x",
        "postgresql://db/x?user=admin&password=s3cr3t",
        "postgresql://admin%3As3cr3t@db/x",
    ],
)
@pytest.mark.parametrize("option", ["--admin", "--dsn"])
def test_a_dsn_with_a_password_is_refused_and_not_repeated(dsn: str, option: str) -> None:
    given = {"--admin": "postgresql://admin@db/x", "--dsn": "postgresql://db/x", "--file": "f", option: dsn}
    result = invoke(*(word for pair in given.items() for word in pair))
    assert result.exit_code == 2
    assert "contains a password" in " ".join(result.output.split())
    assert "s3cr3t" not in result.output


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://admin:1234/s3cr3t@db/x",
        "postgresql://admin:s3cr3t#1234@db/x",
        "postgresql://admin:s3cr3t?a=b@db/x",
        "postgresql://admin@s3cr3t@db/x",
    ],
)
@pytest.mark.parametrize("option", ["--admin", "--dsn"])
def test_a_password_that_ends_the_servers_name_too_early_is_noticed_and_not_repeated(dsn: str, option: str) -> None:
    given = {"--admin": "postgresql://admin@db/x", "--dsn": "postgresql://db/x", "--file": "f", option: dsn}
    result = invoke(*(word for pair in given.items() for word in pair))
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert f"{option} contains " in text
    assert "everyone on this machine can read" in text
    assert "s3cr3t" not in result.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--dsn", "postgresql://bob@db/x"], "must not name a user"),
        (["--dsn", "mysql://db/x"], "must look like postgresql"),
        (["--dsn", "postgresql://[db/x"], "must look like postgresql"),
        (["--secret", "also"], "give exactly one of --file, --secret"),
        (["--assume-changed-before", "yesterday"], "must be a time"),
        (["--account", "both"], "both"),
        (["--password-alphabet", "ab", "--password-length", "3"], "bits"),
        (["--max-lifetime", "-1"], "greater than or equal to 0"),
        (["--announce", "841"], "840"),
        (["--valid-for", "1979"], "valid_for must be at least 1980 s"),
    ],
)
def test_a_mistake_on_the_command_line_is_2_and_told_by_its_name(arguments: list[str], complaint: str) -> None:
    given = ["--admin", "postgresql://admin@db/x", "--dsn", "postgresql://db/x", "--file", "f"]
    result = invoke(*given, *arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.replace("│", " ").split())


def test_an_announcement_that_vault_would_not_wait_for_is_2() -> None:
    places = ["--admin", "postgresql://admin@db/x", "--dsn", "postgresql://db/x", "--vault-roles", "a", "b"]
    result = invoke(*places, "--announce", "5")
    assert result.exit_code == 2
    assert "no effect with --vault-roles" in " ".join(result.output.replace("│", " ").split())


def test_every_gate_that_can_be_overridden_has_its_flag() -> None:
    shown = invoke("--help").output.replace("\n", "")
    parameters = {flag for gate in Gate if (flag := gate.flag)}
    named = {f"--{name.replace('_', '-')}" for name in inspect.signature(rotate).parameters if name.startswith("force")}
    assert named == parameters
    assert "Exit codes" in shown


PATHS_THAT_ARE_DOWN = [
    "postgresql://127.0.0.1:1/x",
    "postgresql://nowhere.invalid/x",
    "postgresql://127.0.0.1:1/x?sslmode=bogus",
    "postgresql://127.0.0.1:1/x?sslmode=verify-full&sslrootcert=/nowhere/ca.pem",
]


@pytest.mark.parametrize("dsn", PATHS_THAT_ARE_DOWN)
async def test_a_path_that_is_down_is_2_whatever_is_forced_and_no_override_is_offered(cli: Cli, dsn: str) -> None:
    before = cli.path.read_bytes()
    for forced in ([], ["--force-mismatch", "--force-other-refused"]):
        code, out, err = await cli("--dsn", dsn, *forced)
        assert (code, out) == (2, ""), err
        is_unreachable = dsn.endswith(":1/x")
        assert ("the applications' path is down: nothing answered" in err) is is_unreachable
        assert is_unreachable or "could not be tried over the applications' path" in err
        assert "--force" not in err
        assert cli.path.read_bytes() == before


async def test_old_sessions_that_could_not_be_ended_are_6_and_not_told_as_ended(
    cli: Cli, postgres: RotatingPostgres
) -> None:
    name = f"{postgres.owner}_clerk"
    await postgres.server.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'clerk' IN ROLE pg_read_all_stats")
    if await postgres.server.fetchval("SELECT current_setting('server_version_num')::int >= 160000"):
        for account in (await cli.store.read()).pair.credentials():
            await postgres.server.execute(
                f'GRANT "{account.username}" TO {name} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE'
            )
    session = await postgres.connect(EVEN)
    admin = postgres.server.dsn.replace("//", f"//{name}@", 1)
    try:
        code, out, err = await cli("--admin", admin, "--end-sessions-after", "0", PGPASSWORD="clerk")
    finally:
        await session.close()
        await postgres.server.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    assert code == 6, err
    assert "ended" not in out
    assert "could not be ended" in err
    assert "the account's old sessions are ended" not in err


def test_a_password_in_the_applications_dsn_is_not_answered_with_the_admins_ways() -> None:
    result = invoke("--admin", "postgresql://a@db/x", "--dsn", "postgresql://:s3cr3t@db/x", "--file", "f")
    assert "come from the secret" in " ".join(result.output.replace("│", " ").split())
    assert "AIOPQR_ADMIN_PASSWORD" not in result.output


async def test_without_an_admin_password_the_ways_to_give_one_are_told(cli: Cli) -> None:
    code, _, err = await cli(PGPASSFILE=str(cli.path.with_name("none")))
    assert code == 2
    assert "use AIOPQR_ADMIN_PASSWORD, PGPASSWORD, the password file (PGPASSFILE) or --password-stdin" in err
