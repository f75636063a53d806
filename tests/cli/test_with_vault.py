"""The operator's commands on a real OpenBao: set up, checked, rotated, by the secret's path alone."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.vault import run

from aiopqr.cli.check.values import Level
from aiopqr.cli.check.vault import RoleTimes, spacing
from aiopqr.rotation.gates import Rules
from aiopqr.testing import PostgresServer, RotatingPostgres, Vault, VaultDatabase


@pytest.fixture
async def owner(server: PostgresServer) -> AsyncIterator[str]:
    owner = f"orders_{secrets.token_hex(4)}"
    await server.execute(f"CREATE ROLE {owner} NOLOGIN")
    yield owner
    await server.drop_accounts(f"{owner}_odd", f"{owner}_even", owner)


def levels(report: Any) -> dict[str, str]:
    return {finding["name"]: finding["level"] for finding in report["findings"]}


async def test_a_secret_is_set_up_checked_and_rotated(server: PostgresServer, vault: Vault, owner: str) -> None:
    admin = server.dsn.replace("//", f"//{server.admin}@", 1)
    place = ("--vault", f"secret/{owner}")
    setup = ("setup", "--admin", admin, "--owner", owner, *place)
    code, report, err = await run(server, vault, *setup)
    assert (code, len(report["changes"])) == (0, 6), err
    code, report, err = await run(server, vault, *setup)
    assert (code, report["changes"]) == (0, []), err

    check = ("check", "--dsn", f"{server.dsn}?sslmode=disable", *place)
    code, report, err = await run(server, vault, *check)
    assert code == 0, err
    assert levels(report)["rotation spacing"] == "ok"

    rotate = ("rotate", "--admin", admin, "--dsn", server.dsn, *place)
    code, report, err = await run(server, vault, *rotate)
    assert (code, report["outcome"]) == (3, "refused"), err
    at_once = ("--max-lifetime", "0", "--refresh-interval", "0", "--margin", "0")
    code, report, err = await run(server, vault, *rotate, *at_once)
    assert (code, report["outcome"]) == (0, "done"), err
    code, report, err = await run(server, vault, *check)
    assert code == 4
    assert "two old passwords" in json.dumps(report)

    code, _, err = await run(server, vault, *rotate, "--dry-run", token="nonsense")
    assert code == 2
    assert "Vault does not accept our token" in err
    code, _, err = await run(server, vault, "rotate", "--admin", admin, "--dsn", server.dsn, "--vault", "orders")
    assert code == 2
    assert "MOUNT/PATH" in err


async def test_static_roles_are_checked_for_their_times_and_rights(
    rotating_postgres: RotatingPostgres, vault_database: VaultDatabase
) -> None:
    server, vault = rotating_postgres.server, vault_database.vault
    roles = ("--vault-roles", "odd", "even", "--vault-mount", vault_database.mount)
    check = ("check", "--dsn", f"{rotating_postgres.dsn}?sslmode=disable", *roles)
    await vault_database.static_roles("24h")
    code, report, err = await run(server, vault, *check)
    assert code == 4, err
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings["odd logs in"]["level"] == findings["Vault policy"]["level"] == "ok"
    assert "pools could be left with two old passwords" in findings["Vault rotation"]["text"]
    assert f"vault write -f {vault_database.mount}/rotate-role/even` at " in findings["Vault rotation"]["advice"]

    token = await vault.token_for(f'path "{vault_database.mount}/static-creds/odd" {{ capabilities = ["read"] }}')
    code, report, err = await run(server, vault, *check, token=token)
    assert code == 4, err
    lacking = [finding for finding in report["findings"] if finding["name"] == "Vault policy"]
    assert lacking[0]["text"] == f"the token lacks read on {vault_database.mount}/static-creds/even"


async def test_leases_are_checked_for_their_length_and_given_back(
    rotating_postgres: RotatingPostgres, vault_database: VaultDatabase
) -> None:
    await vault_database.dynamic_role("app", ttl="60s", max_ttl="10m")
    role = ("--vault-dynamic", "app", "--vault-mount", vault_database.mount)
    check = ("check", "--dsn", f"{rotating_postgres.dsn}?sslmode=disable", *role)
    code, report, err = await run(rotating_postgres.server, vault_database.vault, *check)
    assert code in (3, 4), err
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings["odd logs in"]["level"] == findings["even logs in"]["level"] == "ok"
    assert "before max_lifetime" in findings["Vault lease"]["text"]
    assert await vault_database.leases("app") == []


NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("gap", "periods", "level", "words"),
    [
        (0.0, (86400.0, 86400.0), Level.PROBLEM, "rotate-role/even` at 2025-03-01 13:00:00 UTC"),
        (86400.0 - 60.0, (86400.0, 86400.0), Level.PROBLEM, "rotate-role/even` at "),
        (43200.0, (86400.0, 86400.0), Level.OK, ""),
        (100.0, (600.0, 600.0), Level.PROBLEM, "set rotation_period to 3960 s"),
        (43200.0, (86400.0, 80000.0), Level.WARNING, "the same rotation_period"),
        (43200.0, (None, None), Level.NOTE, "never come closer"),
        (10.0, (None, None), Level.PROBLEM, "half a period apart"),
    ],
)
def test_rotations_that_are_too_close_are_moved_apart(
    gap: float, periods: tuple[float | None, float | None], level: Level, words: str
) -> None:
    first = NOW + timedelta(hours=13)
    roles = [
        RoleTimes(f"database/rotate-role/{name}", NOW, at, period)
        for name, at, period in zip(("odd", "even"), (first, first + timedelta(seconds=gap)), periods, strict=True)
    ]
    found = list(spacing(roles, Rules(), NOW))
    assert max(finding.level for finding in found) is level
    assert any(words in finding.advice for finding in found)
