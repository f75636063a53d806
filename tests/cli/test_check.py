"""``aiopqr check``: what it finds on a real server, and how it judges everything it could find."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiopqr.cli import application
from aiopqr.cli.check.command import EXIT_CODES, schedule_of, sslmode_of
from aiopqr.cli.check.facts import AccountFacts
from aiopqr.cli.check.findings import findings
from aiopqr.cli.check.timing import period_of
from aiopqr.cli.check.values import CheckFacts, Finding, Level
from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.refusals import Verdict
from aiopqr.rotation import FileStore
from aiopqr.rotation.gates import Rules
from aiopqr.testing import RotatingPostgres
from tests.support.pgbouncer import PgBouncer

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
ODD, EVEN = Parity.ODD, Parity.EVEN
THEMSELVES = "ALTER ROLE {odd} RESET role; ALTER ROLE {even} RESET role"


@dataclass
class Cli:
    """The command on a fresh database, with the pair in a file."""

    postgres: RotatingPostgres
    path: Path
    dsn: str

    async def __call__(self, *arguments: str, where: tuple[str, str] | None = None, **env: str) -> tuple[int, str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "AIOPQR"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiopqr", "check", "--dsn", self.dsn),
            *(where or ("--file", str(self.path))),
            *arguments,
            env={**clean, "COLUMNS": "200", **env},
            cwd=self.path.parent,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        text = out.decode() + err.decode()
        assert not [c for c in self.postgres.pair.credentials() if c.password.reveal() in text]
        return process.returncode or 0, out.decode(), err.decode()

    async def found(self, *arguments: str, **options: Any) -> dict[str, list[dict[str, Any]]]:
        """The findings by name, except those that are as they should be."""
        _, out, err = await self("--json", *arguments, **options)
        assert out, err
        found: dict[str, list[dict[str, Any]]] = {}
        for finding in json.loads(out)["findings"]:
            if finding["level"] != "ok":
                found.setdefault(finding["name"], []).append(finding)
        return found

    async def run_sql(self, sql: str) -> None:
        names = {str(parity): f'"{self.postgres.pair[parity].username}"' for parity in Parity}
        await self.postgres.server.execute(
            sql.format(owner=f'"{self.postgres.owner}"', **names), database=self.postgres.database
        )


@pytest.fixture
async def cli(postgres: RotatingPostgres, tmp_path: Path) -> Cli:
    cli = Cli(postgres, tmp_path / "pair.json", postgres.server.dsn_of(postgres.database, sslmode="disable"))
    await FileStore(cli.path).create(postgres.pair, changed_at=datetime.now(UTC) - timedelta(hours=1))
    return cli


async def test_two_equal_accounts_are_well(cli: Cli) -> None:
    code, out, err = await cli()
    assert (code, err) == (0, "")
    assert "problem" not in out
    assert f"odd logs in         {cli.postgres.pair.odd.username}" in out
    assert set(await cli.found()) - {"authentication"} == {"TLS"}  # notes: none; not known before Postgres 16


@pytest.mark.parametrize(
    ("sql", "name", "level", "text"),
    [
        ("ALTER ROLE {even} NOLOGIN", "even logs in", "problem", "not permitted to log in"),
        ("ALTER ROLE {odd} SUPERUSER", "superuser", "problem", "superuser"),
        ("ALTER ROLE {odd} BYPASSRLS", "powers", "warning", "BYPASSRLS"),
        ("ALTER ROLE {even} VALID UNTIL '2099-01-01'", "VALID UNTIL", "warning", "2099-01-01"),
        ("ALTER ROLE {even} CONNECTION LIMIT 10", "connection limit", "problem", "needs up to 11"),
        ("ALTER ROLE {even} CONNECTION LIMIT 25", "connection limit", "note", "2 pools of 10"),
        ("ALTER ROLE {even} CONNECTION LIMIT 25", "connection limits differ", "warning", "-1 and 25"),
        ("ALTER ROLE {odd} SET search_path = private", "settings", "problem", "search_path = private"),
        ("ALTER ROLE {odd} RESET role", "ownership", "warning", "owns what it creates"),
        ("GRANT pg_monitor TO {odd}", "memberships", "problem", "pg_monitor"),
        (
            f"CREATE TABLE t (n int); {THEMSELVES}; GRANT SELECT ON t TO {{odd}}",
            "privileges",
            "problem",
            "SELECT on public.t",
        ),
        (
            f"CREATE TABLE t (n int, m int); {THEMSELVES}; GRANT UPDATE (m) ON t TO {{even}}",
            "privileges",
            "problem",
            "UPDATE on public.t",
        ),
        (
            f"CREATE SCHEMA s; {THEMSELVES}; GRANT USAGE ON SCHEMA s TO {{odd}}",
            "privileges",
            "problem",
            "USAGE on schema s",
        ),
        (
            f"CREATE SEQUENCE q; {THEMSELVES}; GRANT USAGE ON q TO {{odd}}",
            "privileges",
            "problem",
            "USAGE on sequence public.q",
        ),
        (
            f"{THEMSELVES}; ALTER DEFAULT PRIVILEGES FOR ROLE {{odd}} GRANT SELECT ON TABLES TO PUBLIC",
            "default privileges",
            "problem",
            "in any schema",
        ),
        ("CREATE TABLE t (n int); ALTER TABLE t OWNER TO {even}", "ownership", "warning", "itself owns 1 object"),
    ],
)
async def test_what_makes_the_accounts_unequal_or_unfit_is_found(
    cli: Cli, sql: str, name: str, level: str, text: str
) -> None:
    await cli.run_sql(sql)
    found = await cli.found()
    assert [(finding["level"], bool(finding["advice"])) for finding in found[name]][:1] == [(level, True)]
    assert text in " ".join(finding["text"] for finding in found[name])


async def test_a_wrong_password_is_a_problem_and_the_exit_code_4(cli: Cli) -> None:
    await cli.postgres.rotate("odd", store_delay=None)
    code, out, _ = await cli()
    assert code == 4
    assert "password authentication failed" in out


async def test_behind_pgbouncer_the_proxy_is_seen_and_explained(cli: Cli) -> None:
    async with PgBouncer(cli.postgres.server) as bouncer:
        behind = dataclasses.replace(cli, dsn=bouncer.dsn_of(cli.postgres.database))
        [finding] = (await behind.found())["proxy"]
    assert finding["level"] == "note"
    assert "auth_query" in finding["advice"]


async def test_one_account_is_what_it_is_and_what_a_second_one_would_give_is_said(cli: Cli) -> None:
    odd = cli.postgres.pair.odd
    assert odd
    cli.path.write_text(json.dumps({"username": odd.username, "password": odd.password.reveal()}))
    exit_code, out, _ = await cli()
    assert exit_code in (0, 3)
    assert "one account" in out
    assert "a second account removes that wait" in " ".join(out.split())
    assert "spacing" not in out


async def test_a_callable_of_the_users_is_a_source_too(cli: Cli) -> None:
    source = cli.path.with_name("my_source.py")
    source.write_text(
        "import pathlib, aiopqr\n"
        "async def fetch():\n    return aiopqr.CredentialPair.from_secret(pathlib.Path('pair.json').read_text())\n"
    )
    found = await cli.found(where=("--source", "my_source:fetch"))
    assert "does not say when" in found["rotation spacing"][0]["text"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("async def fetch(): raise ValueError('s3cret')", "ValueError"),
        ("async def fetch(): return {'odd_password': 's3cret'}", "returned a dict"),
        ("", "fetch"),
    ],
)
async def test_a_source_that_fails_is_2_and_shows_nothing_it_holds(cli: Cli, code: str, text: str) -> None:
    cli.path.with_name("my_source.py").write_text(code)
    exit_code, out, err = await cli(where=("--source", "my_source:fetch"))
    assert exit_code == 2
    assert text in err
    assert "s3cret" not in out + err


def test_a_dsn_with_a_password_is_refused_and_not_repeated() -> None:
    line = ["check", "--dsn", "postgresql://a:s3cr3t@b/c", "--file", "f"]
    result = CliRunner().invoke(application(line), line)
    assert result.exit_code == 2
    assert "s3cr3t" not in result.output


# How it judges facts.

ROLE = {
    "session_user": "app_odd",
    "current_user": "app",
    "superuser": False,
    "createrole": False,
    "replication": False,
    "bypassrls": False,
    "connection_limit": -1,
    "database_limit": -1,
    "valid_until": None,
    "owned": 0,
}


def account(name: str, **options: Any) -> AccountFacts:
    role = {**ROLE, "session_user": name, **options.pop("role", {})}
    return AccountFacts(name, role=role, authentication=options.pop("authentication", "scram-sha-256"), **options)


def judge(**options: Any) -> dict[str, Finding]:
    pair = CredentialPair(Credential("app_odd", "o"), Credential("app_even", "e"))
    defaults: dict[str, Any] = {
        "pair": pair,
        "accounts": {ODD: account("app_odd"), EVEN: account("app_even")},
        "sslmode": "verify-full",
        "rules": Rules(1000.0, 60.0, 40.0),
        "max_size": 10,
        "changed_at": {ODD: NOW, EVEN: NOW - timedelta(days=1)},
    }
    return {finding.name: finding for finding in findings(CheckFacts(**{**defaults, **options}))}


def test_nothing_is_found_where_all_is_well() -> None:
    assert {finding.level for finding in judge().values()} == {Level.OK}


@pytest.mark.parametrize(
    ("mode", "level", "text"),
    [
        ("prefer", Level.WARNING, "refused login is repeated"),
        ("allow", Level.WARNING, "refused login is repeated"),
        ("disable", Level.NOTE, "can read"),
        ("require", Level.NOTE, "not verified"),
        ("verify-full", Level.OK, "verify-full"),
        (None, Level.OK, "Unix socket"),
    ],
)
def test_each_tls_mode_is_judged(mode: str | None, level: Level, text: str) -> None:
    finding = judge(sslmode=mode)["TLS"]
    assert finding.level is level
    assert text in finding.text


@pytest.mark.parametrize(
    ("method", "level"),
    [
        ("scram-sha-256", Level.OK),
        ("md5", Level.WARNING),
        ("", Level.PROBLEM),
        ("ldap", Level.WARNING),
        (None, Level.NOTE),
    ],
)
def test_each_authentication_method_is_judged(method: str | None, level: Level) -> None:
    accounts = {ODD: account("app_odd", authentication=method), EVEN: account("app_even", authentication=method)}
    assert judge(accounts=accounts)["authentication"].level is level


@pytest.mark.parametrize(("apart", "level"), [(1059.0, Level.PROBLEM), (1060.0, Level.OK), (0.0, Level.OK)])
def test_changes_closer_than_lifetime_and_interval_could_have_left_a_pool_with_nothing(
    apart: float, level: Level
) -> None:
    """Equal times mean that the accounts were just created, before any pool held a password."""
    finding = judge(changed_at={ODD: NOW, EVEN: NOW - timedelta(seconds=apart)})["rotation spacing"]
    assert finding.level is level


def test_pools_without_a_lifetime_are_warned_of() -> None:
    assert judge(rules=Rules(0.0, 60.0, 40.0))["rotation spacing"].level is Level.WARNING


def test_a_degraded_pair_is_a_problem_and_a_staged_password_a_warning() -> None:
    odd, even = Credential("app_odd", "o"), Credential("app_even", "e")
    degraded = judge(pair=CredentialPair(odd, None), accounts={ODD: account("app_odd")})
    assert degraded["pair"].level is Level.PROBLEM
    staged = judge(pair=CredentialPair(odd, even, pending=Credential("app_odd", "n")))
    assert staged["pair"].level is Level.WARNING


def test_a_login_that_fails_for_another_reason_is_not_blamed_on_the_password() -> None:
    down = AccountFacts("app_odd", "ConnectionRefusedError", Verdict.OUTAGE)
    found = judge(accounts={ODD: down, EVEN: account("app_even")})
    assert found["odd logs in"].level is Level.PROBLEM
    assert "the password is not to blame" in found["odd logs in"].advice


def test_an_account_that_a_proxy_maps_to_another_is_a_problem() -> None:
    accounts = {ODD: account("app_odd", role={"session_user": "shared"}), EVEN: account("app_even")}
    assert judge(accounts=accounts)["identity"].level is Level.PROBLEM


@pytest.mark.parametrize(
    ("description", "level", "text"),
    [
        ({"RotationEnabled": False}, Level.NOTE, "does not rotate by itself"),
        ({"RotationEnabled": True, "RotationRules": {"AutomaticallyAfterDays": 30}}, Level.OK, "every 30 days"),
        (
            {
                "RotationEnabled": True,
                "RotationRules": {"ScheduleExpression": "rate(10 minutes)"},
                "LastRotatedDate": NOW,
                "NextRotationDate": NOW + timedelta(minutes=10),
            },
            Level.PROBLEM,
            "last 2025-03-01 12:00 UTC, next 2025-03-01 12:10 UTC",
        ),
        (
            {"RotationEnabled": True, "RotationRules": {"ScheduleExpression": "cron(0 3 ? * SUN *)"}},
            Level.OK,
            "cron(0 3 ? * SUN *), not yet run",
        ),
    ],
)
def test_the_stores_own_schedule_is_held_against_the_spacing(
    description: dict[str, Any], level: Level, text: str
) -> None:
    finding = judge(schedule=schedule_of(description))["rotation schedule"]
    assert finding.level is level
    assert text in finding.text


@pytest.mark.parametrize(
    ("rule", "period"),
    [
        ("rate(4 hours)", timedelta(hours=4)),
        ("rate(1 day)", timedelta(days=1)),
        ("cron(0 8 1 * ? *)", None),
        ("rate(soon)", None),
        ("", None),
    ],
)
def test_a_rate_has_a_period_and_a_cron_rule_has_none(rule: str, period: timedelta | None) -> None:
    assert period_of(rule) == period


@pytest.mark.parametrize(
    ("dsn", "by_socket", "mode"),
    [
        ("postgresql://db/x", False, "prefer"),
        ("postgresql://db/x?sslmode=verify-full", False, "verify-full"),
        ("postgresql:///x?host=/var/run/postgresql", True, None),
        ("postgresql://%2Ftmp/x", True, None),
        ("postgresql:///x", True, None),  # asyncpg looks for sockets, and then tries localhost
        ("postgresql:///x", False, "prefer"),
        ("postgresql://db/x?service=there", False, "require"),
        ("postgresql:///x?service=there", True, None),
        ("postgresql:///x?service=there&sslmode=disable", True, None),
        ("postgresql://db/x?service=there&sslmode=disable", False, "disable"),
    ],
)
def test_the_tls_mode_is_the_one_that_asyncpg_uses(
    dsn: str, by_socket: bool, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "services"
    file.write_text("[there]\nhost=/var/run/postgresql\nsslmode=require\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert sslmode_of(dsn, by_socket=by_socket) == mode


def test_the_worst_finding_decides_the_exit_code() -> None:
    assert EXIT_CODES == {Level.OK: 0, Level.NOTE: 0, Level.WARNING: 3, Level.PROBLEM: 4}


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://127.0.0.1:1/x",
        "postgresql://nowhere.invalid/x",
        "postgresql://127.0.0.1:1/x?sslmode=bogus",
        "postgresql://127.0.0.1:1/x?sslmode=verify-full&sslrootcert=/nowhere/ca.pem",
    ],
)
async def test_a_path_on_which_no_account_could_be_tried_is_2(cli: Cli, dsn: str) -> None:
    cli.dsn = dsn
    code, out, err = await cli()
    assert (code, out) == (2, "")
    assert "the check could not run: " in err
    assert ("the applications' path is down: nothing answered at 127.0.0.1:1/x" in err) is dsn.endswith(":1/x")


async def test_an_account_that_does_not_log_in_is_explained_by_what_the_other_one_sees(cli: Cli) -> None:
    name = cli.postgres.usernames[0]
    for sql, why, advice in (
        ("ALTER ROLE {odd} VALID UNTIL '2020-01-01'", "VALID UNTIL passed at 2020-01-01", "--account odd` renews it"),
        (
            "ALTER ROLE {odd} VALID UNTIL 'infinity' PASSWORD 'other'",
            "password is not the one in the database",
            "--force-mismatch",
        ),
        ("ALTER ROLE {odd} NOLOGIN", "NOLOGIN", "`aiopqr setup` does this"),
        (f"ALTER ROLE {{odd}} RENAME TO {name}_gone", "no role has this name", "`aiopqr setup`"),
    ):
        await cli.run_sql(sql)
        [finding] = (await cli.found())["odd logs in"]
        assert why in finding["text"]
        assert advice in finding["advice"]
    await cli.postgres.server.execute(f"ALTER ROLE {name}_gone RENAME TO {name}")


@pytest.mark.parametrize("power", ["SUPERUSER", "BYPASSRLS"])
async def test_an_owner_that_may_do_everything_is_a_problem(cli: Cli, power: str) -> None:
    await cli.postgres.server.execute(f"ALTER ROLE {cli.postgres.owner} {power}")
    findings = (await cli.found())["powers"]
    assert {finding["level"] for finding in findings} == {"problem"}
    assert all(f"'{cli.postgres.owner}', which has {power}" in finding["text"] for finding in findings)


async def test_a_file_that_others_can_read_or_that_has_a_second_name_is_warned_of(cli: Cli) -> None:
    cli.path.chmod(0o604)
    os.link(cli.path, cli.path.with_name("other.json"))
    texts = [finding["text"] for finding in (await cli.found())["file"]]
    assert ["mode 604" in texts[0], "2 names (hard links)" in texts[1]] == [True, True]
    cli.path.chmod(0o600)
    os.unlink(cli.path.with_name("other.json"))
    assert "file" not in await cli.found()


def test_the_next_rotation_is_dated() -> None:
    accounts = {ODD: account("app_odd", role={"now": NOW}), EVEN: account("app_even", role={"now": NOW})}
    assert judge(accounts=accounts)["next rotation"].text == "possible at 2025-03-01 12:18:20 UTC, in 18 min"
    past = {ODD: NOW - timedelta(hours=1), EVEN: NOW - timedelta(days=1)}
    assert judge(accounts=accounts, changed_at=past)["next rotation"].text == "possible since 2025-03-01 11:18:20 UTC"


async def test_what_is_piped_is_not_folded(cli: Cli) -> None:
    await cli.run_sql("ALTER ROLE {odd} NOLOGIN")
    _, out, _ = await cli(COLUMNS="80")
    [line] = [line for line in out.splitlines() if "odd logs in" in line]
    assert "is not permitted to log in" in line
    assert all(line == line.rstrip() for line in out.splitlines())
