"""``aiopqr setup``: two equal accounts of one owner, made once, repaired later, and what is right is left alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from aiopqr.cli import application
from aiopqr.credentials import Credential
from aiopqr.rotation import FileStore
from aiopqr.testing import PostgresServer


@dataclass
class Cli:
    """The command for the role ``owner`` of a server; it prints JSON by default."""

    server: PostgresServer
    owner: str
    path: Path

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        admin = self.server.dsn.replace("//", f"//{self.server.admin}@", 1)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "AIOPQR"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiopqr", "setup", "--admin", admin, "--owner", self.owner, *arguments),
            env={**clean, "AIOPQR_ADMIN_PASSWORD": self.server.admin_password.reveal()},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def json(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        code, out, err = await self("--json", *arguments)
        assert out, err
        return code, json.loads(out)

    async def changes(self, *arguments: str) -> list[str]:
        return [change["text"] for change in (await self.json(*arguments))[1]["changes"]]

    async def log_in(self, parity: str) -> asyncpg.Connection[asyncpg.Record]:
        pair = (await FileStore(self.path).read()).pair
        account: Credential = getattr(pair, parity)
        return await asyncpg.connect(
            self.server.dsn_of(self.owner), user=account.username, password=account.password.reveal
        )


@pytest.fixture
async def cli(server: PostgresServer, tmp_path: Path) -> AsyncIterator[Cli]:
    owner = f"Orders {os.urandom(4).hex()}"
    await server.execute(f'CREATE ROLE "{owner}" NOLOGIN')
    await server.create_database(owner, owner=owner)
    await server.execute(f'ALTER ROLE "{owner}" SET search_path = "$user", private, public')
    await server.execute(f"ALTER ROLE \"{owner}\" IN DATABASE \"{owner}\" SET app.tenant = 'it''s \\ here'")
    yield Cli(server, owner, tmp_path / "pair.json")
    await server.drop_database(owner)
    await server.drop_accounts(f"{owner}_odd", f"{owner}_even", owner)


async def test_two_accounts_are_made_that_log_in_and_act_as_the_owner(cli: Cli) -> None:
    code, out, err = await cli("--file", str(cli.path))
    assert code == 0, err
    assert stat.S_IMODE(cli.path.stat().st_mode) == 0o600
    secret = await FileStore(cli.path).read()
    assert not [c for c in secret.pair.credentials() if c.password.reveal() in out + err]
    for parity in ("odd", "even"):
        con = await cli.log_in(parity)
        assert await con.fetchval("SELECT session_user") == f"{cli.owner}_{parity}"
        assert await con.fetchval("SELECT current_user") == cli.owner
        await con.close()


async def test_what_one_account_creates_belongs_to_both(cli: Cli) -> None:
    await cli("--file", str(cli.path))
    odd, even = await cli.log_in("odd"), await cli.log_in("even")
    await odd.execute("CREATE SCHEMA private; CREATE TABLE private.thing (n int)")
    await even.execute("ALTER TABLE private.thing ADD m int; DROP TABLE private.thing")
    await odd.close()
    await even.close()


async def test_both_accounts_have_the_owners_settings_exactly(cli: Cli) -> None:
    await cli("--file", str(cli.path))
    for parity in ("odd", "even"):
        con = await cli.log_in(parity)
        assert await con.fetchval("SHOW search_path") == '"$user", private, public'
        assert await con.fetchval("SHOW app.tenant") == "it's \\ here"
        await con.close()


async def test_a_second_run_changes_nothing(cli: Cli) -> None:
    await cli("--file", str(cli.path))
    before = cli.path.read_bytes()
    code, outcome = await cli.json("--file", str(cli.path))
    assert (code, outcome["changes"], outcome["attention"]) == (0, [], [])
    assert cli.path.read_bytes() == before


async def test_a_dry_run_prints_sql_that_does_it_without_a_password_and_changes_nothing(cli: Cli) -> None:
    code, out, _ = await cli("--dry-run", "--file", str(cli.path))
    assert code == 0
    assert "SCRAM-SHA-256$" not in out
    assert not cli.path.exists()
    assert await cli.server.execute("SELECT 1 FROM pg_roles WHERE rolname = $1", f"{cli.owner}_odd") == []
    sql = out.replace("<a SCRAM-SHA-256 verifier>", "md5" + "0" * 32)
    await cli.server.execute(f"BEGIN; {sql} COMMIT;")
    assert await cli.changes() == []


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("ALTER ROLE {odd} NOLOGIN", "let '{name}' log in"),
        ("ALTER ROLE {odd} NOINHERIT", "let '{name}' inherit the privileges of its owner role"),
        ("REVOKE {owner} FROM {odd}", "make '{name}' a member of '{ownername}'"),
        ("ALTER ROLE {odd} RESET role", "make '{ownername}' the owner of what '{name}' creates"),
        ("ALTER ROLE {odd} SET search_path = public", "copy the setting search_path from '{ownername}' to '{name}'"),
    ],
)
async def test_damage_is_repaired_and_told(cli: Cli, damage: str, text: str) -> None:
    await cli("--file", str(cli.path))
    name = f"{cli.owner}_odd"
    await cli.server.execute(damage.format(odd=f'"{name}"', owner=f'"{cli.owner}"'))
    assert await cli.changes() == [text.format(name=name, ownername=cli.owner)]
    assert await cli.changes() == []
    con = await cli.log_in("odd")
    assert await con.fetchval("SELECT current_user") == cli.owner
    await con.close()


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        ("2020-01-01", 3, "to do: the password of '{name}' expired at 2020-01-01 00:00:00 UTC (VALID UNTIL): `aiopqr"),
        ("2099-01-01", 0, "note: the password of '{name}' expires at 2099-01-01 00:00:00 UTC (VALID UNTIL): each"),
    ],
)
async def test_the_end_of_a_password_is_kept_and_told(cli: Cli, end: str, code: int, line: str) -> None:
    await cli("--file", str(cli.path))
    name = f"{cli.owner}_odd"
    await cli.server.execute(f"ALTER ROLE \"{name}\" VALID UNTIL '{end} 00:00Z'")
    done, out, err = await cli("--file", str(cli.path))
    assert (done, out) == (code, "nothing to change\n")
    assert line.format(name=name) in err
    kept = await cli.server.fetchval("SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", name)
    assert str(kept.date()) == end


async def test_passwords_of_accounts_that_exist_are_never_touched(cli: Cli) -> None:
    await cli("--file", str(cli.path))
    await cli.server.execute(f'ALTER ROLE "{cli.owner}_odd" NOLOGIN')
    await cli("--file", str(cli.path))
    await (await cli.log_in("odd")).close()


async def test_a_run_killed_after_the_file_was_written_is_completed_by_the_next(cli: Cli) -> None:
    await cli("--file", str(cli.path))
    before = cli.path.read_bytes()
    await cli.server.drop_accounts(f"{cli.owner}_odd", f"{cli.owner}_even")
    assert (await cli("--file", str(cli.path)))[0] == 0
    assert cli.path.read_bytes() == before
    await (await cli.log_in("even")).close()


async def test_without_a_store_no_role_is_created(cli: Cli) -> None:
    code, out, err = await cli()
    assert (code, out) == (2, "")
    assert "--file, --secret or --vault" in err
    assert await cli.server.execute("SELECT 1 FROM pg_roles WHERE rolname = $1", f"{cli.owner}_odd") == []


@pytest.mark.parametrize("power", ["SUPERUSER", "BYPASSRLS"])
async def test_an_owner_that_may_do_everything_is_refused(cli: Cli, power: str) -> None:
    await cli.server.execute(f'ALTER ROLE "{cli.owner}" {power}')
    code, out, err = await cli("--file", str(cli.path))
    assert (code, out) == (2, "")
    assert "Give the application an ordinary role of its own" in err
    assert not cli.path.exists()


async def test_the_last_lines_say_what_to_do_next(cli: Cli) -> None:
    code, _, err = await cli("--file", str(cli.path))
    assert code == 0
    *_, check, rotate = err.splitlines()
    assert check.startswith(f"next: let the pools read {cli.path}, then")
    assert "aiopqr rotate" in rotate
    assert re.search(r", which with its default options is possible from [-\d]+ [:\d]+ UTC on$", rotate)


async def test_an_admin_dsn_that_names_no_database_of_the_server_is_2(cli: Cli) -> None:
    server = cli.server
    wrong = server.dsn_of("no-such-database").replace("//", f"//{server.admin}@", 1)
    code, _, err = await cli("--admin", wrong, "--file", str(cli.path))
    assert code == 2
    assert "'no-such-database', which the admin's DSN names, does not exist" in err


async def test_differences_that_are_nobody_elses_to_choose_are_told_and_left(cli: Cli) -> None:
    await cli("--file", str(cli.path))
    name = f"{cli.owner}_even"
    for sql in ("GRANT pg_monitor TO {}", "ALTER ROLE {} SET work_mem = '8MB'", "ALTER ROLE {} CONNECTION LIMIT 9"):
        await cli.server.execute(sql.format(f'"{name}"'))
    code, outcome = await cli.json()
    assert (code, outcome["changes"]) == (3, [])
    assert [word in " ".join(outcome["attention"]) for word in ("pg_monitor", "work_mem", "limits differ")] == [
        True
    ] * 3


async def test_an_owner_that_can_log_in_is_noted_and_left_alone(cli: Cli) -> None:
    await cli.server.execute(f'ALTER ROLE "{cli.owner}" LOGIN')
    code, outcome = await cli.json("--file", str(cli.path))
    assert code == 0
    assert f'ALTER ROLE "{cli.owner}" NOLOGIN' in outcome["notes"][0]
    assert await cli.server.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", cli.owner)


async def test_a_missing_owner_is_2_and_creates_nothing(cli: Cli) -> None:
    code, _, err = await cli("--owner", "nobody-of-that-name")
    assert code == 2
    assert "does not exist" in err


async def test_with_every_statement_logged_the_servers_log_holds_no_password(cli: Cli) -> None:
    mark = cli.server.mark()
    await cli.server.configure(log_statement="all")
    try:
        await cli("--file", str(cli.path))
    finally:
        await cli.server.configure(log_statement=None)
    log = cli.server.log_text(mark)
    assert "CREATE ROLE" in log
    pair = (await FileStore(cli.path).read()).pair
    assert not [credential for credential in pair.credentials() if credential.password.reveal() in log]


def test_three_names_must_differ() -> None:
    line = ["setup", "--admin", "postgresql://a@b/c", "--owner", "app", "--odd", "app"]
    result = CliRunner().invoke(application(line), line)
    assert result.exit_code == 2


async def test_a_run_that_fails_leaves_no_file_of_accounts_that_do_not_exist(cli: Cli) -> None:
    clerk = f"clerk_{os.urandom(4).hex()}"
    await cli.server.execute(f"CREATE ROLE {clerk} LOGIN CREATEROLE PASSWORD '{cli.server.admin_password.reveal()}'")
    if await cli.server.fetchval("SELECT current_setting('server_version_num')::int < 160000"):
        await cli.server.execute(f"ALTER ROLE {clerk} NOCREATEROLE")  # CREATEROLE alone may do all of it
    try:
        code, out, err = await cli("--admin", cli.server.dsn.replace("//", f"//{clerk}@", 1), "--file", str(cli.path))
    finally:
        await cli.server.execute(f"DROP ROLE {clerk}")
    assert (code, out) == (2, "")
    assert "Nothing was changed, and no password was written" in err
    assert not cli.path.exists()


async def test_a_file_without_the_passwords_of_accounts_that_exist_is_told_and_is_3(cli: Cli) -> None:
    await cli("--file", str(cli.path))
    cli.path.unlink()
    code, outcome = await cli.json("--file", str(cli.path))
    assert (code, outcome["changes"]) == (3, [])
    [todo] = outcome["attention"]
    assert f"has no password for '{cli.owner}_odd', '{cli.owner}_even'" in todo
    assert "DROP ROLE" in todo
    assert not cli.path.exists()


async def test_a_file_that_cannot_be_used_is_2_and_creates_nothing(cli: Cli) -> None:
    cli.path.write_text("{")
    code, _, err = await cli("--file", str(cli.path))
    assert code == 2
    assert "cannot be used" in err
    assert await cli.server.execute("SELECT 1 FROM pg_roles WHERE rolname = $1", f"{cli.owner}_odd") == []
    assert cli.path.read_text() == "{"
