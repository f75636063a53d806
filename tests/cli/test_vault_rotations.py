"""``aiopqr rotate`` with Vault, as processes: two at a time, gates before static roles, a Vault that fails midway."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.vault import Between, begin, end, run

from aiopqr.rotation.connects import APPLICATION_NAME
from aiopqr.rotation.stores.vault import VaultStore
from aiopqr.testing import RotatingPostgres, Vault, VaultDatabase
from aiopqr.testing.server import in_a_thread

AT_ONCE = ("--max-lifetime", "0", "--refresh-interval", "0", "--margin", "0")

# The rotator sleeps before it writes its stage, as a machine that is suspended does.
SLEEPING = """
import signal, threading, hvac.adapters
request = hvac.adapters.RawAdapter.request
def sleeping(self, method, url, *args, **kwargs):
    if method == "POST" and "/data/" in url:
        hvac.adapters.RawAdapter.request = request
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # with kill(), this thread might run on for a moment
    return request(self, method, url, *args, **kwargs)
hvac.adapters.RawAdapter.request = sleeping
"""


def command(postgres: RotatingPostgres, *place: str) -> tuple[str, ...]:
    admin = postgres.dsn.replace("//", f"//{postgres.server.admin}@", 1)
    return ("rotate", "--admin", admin, "--dsn", postgres.dsn, *place, *AT_ONCE)


# The pair in a KV engine: two processes at a time.


@pytest.fixture
async def kv_rotate(postgres: RotatingPostgres, vault: Vault) -> tuple[str, ...]:
    async with VaultStore(postgres.database, **vault.options) as store:
        await store.create(postgres.pair, changed_at=datetime.now(UTC) - timedelta(hours=1))
    return command(postgres, "--vault", f"secret/{postgres.database}")


async def stored(postgres: RotatingPostgres, vault: Vault) -> dict[str, Any]:
    found: dict[str, Any] = (await vault.ask("GET", f"secret/data/{postgres.database}"))["data"]
    return found


async def both_log_in(postgres: RotatingPostgres, vault: Vault) -> None:
    secret = (await stored(postgres, vault))["data"]
    assert "pending_password" not in secret
    for name in ("odd", "even"):
        con = await asyncpg.connect(postgres.dsn, user=secret[f"{name}_username"], password=secret[f"{name}_password"])
        await con.close()


async def test_of_two_that_run_at_once_one_is_refused(
    postgres: RotatingPostgres, vault: Vault, kv_rotate: tuple[str, ...]
) -> None:
    both = [run(postgres.server, vault, *kv_rotate, "--announce", "3", "--account", "odd") for _ in range(2)]
    (code, report, _), (loser, refusal, err) = sorted(await asyncio.gather(*both), key=lambda outcome: outcome[0])
    assert (code, report.get("outcome")) == (0, "done")
    assert (loser, refusal.get("outcome")) == (3, "refused"), err
    assert refusal["objections"][0]["gate"] in ("in-progress", "open-stage")
    assert (await stored(postgres, vault))["metadata"]["version"] == 3  # created, staged, promoted
    await both_log_in(postgres, vault)


async def test_one_that_slept_while_another_rotated_is_refused_by_check_and_set(
    postgres: RotatingPostgres, vault: Vault, kv_rotate: tuple[str, ...]
) -> None:
    options = {"url": vault.url, "token": vault.token.reveal()}
    sleeper = await begin(postgres.server, *kv_rotate, "--announce", "0", "--json", **options, code=SLEEPING)
    try:
        await asleep(sleeper.pid)
        # Its sessions are lost meanwhile, and its locks with them.
        await postgres.server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", APPLICATION_NAME
        )
        code, report, err = await run(postgres.server, vault, *kv_rotate, "--announce", "0")
        assert (code, report.get("outcome")) == (0, "done"), err
        before = await stored(postgres, vault)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    code, report, err = await end(sleeper)
    assert (code, report.get("outcome"), report["objections"][0]["gate"]) == (3, "refused", "in-progress"), err
    assert "has changed since it was read. This run changed no password" in report["objections"][0]["text"]
    assert await stored(postgres, vault) == before
    await both_log_in(postgres, vault)


async def asleep(pid: int) -> None:
    async with asyncio.timeout(60.0):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.02)


# Two static roles: the gates.


@dataclass
class Roles:
    """Two static roles of a fresh database, and the command that rotates them."""

    postgres: RotatingPostgres
    database: VaultDatabase

    async def rotate(self, *more: str, **options: Any) -> tuple[int, Any, str]:
        place = ("--vault-roles", "odd", "even", "--vault-mount", self.database.mount)
        return await run(self.postgres.server, self.database.vault, *command(self.postgres, *place), *more, **options)

    async def passwords(self) -> list[str]:
        vault = self.database.vault
        answers = [await vault.ask("GET", f"{self.database.mount}/static-creds/{role}") for role in ("odd", "even")]
        return [answer["data"]["password"] for answer in answers]

    async def session(self, number: int) -> asyncpg.Connection[asyncpg.Record]:
        password = (await self.passwords())[number]
        return await asyncpg.connect(self.postgres.dsn, user=self.postgres.usernames[number], password=password)


@pytest.fixture
async def roles(postgres: RotatingPostgres, vault_database: VaultDatabase) -> Roles:
    await vault_database.static_roles("24h")
    return Roles(postgres, vault_database)


async def test_roles_are_rotated_one_after_the_other_and_a_dry_run_changes_nothing(roles: Roles) -> None:
    before = await roles.passwords()
    code, report, err = await roles.rotate("--dry-run")
    assert code == 0, err
    assert report["steps"][0].startswith("let Vault change the password of ")
    assert await roles.passwords() == before
    code, report, err = await roles.rotate()
    assert (code, report.get("outcome"), report["account"]) == (0, "done", "odd"), err
    after = await roles.passwords()
    assert (after[0] != before[0], after[1]) == (True, before[1])
    code, report, err = await roles.rotate()
    assert (code, report["account"]) == (0, "even"), err


async def refused(roles: Roles, gate: str, *more: str) -> str:
    """A gate refuses, nothing is changed, and its flag overrides it. Returns its message."""
    before = await roles.passwords()
    code, report, err = await roles.rotate(*more)
    assert (code, report.get("outcome"), [one["gate"] for one in report["objections"]]) == (3, "refused", [gate]), err
    assert await roles.passwords() == before
    code, report_then, err = await roles.rotate(*more, f"--force-{gate}")
    assert (code, report_then.get("outcome")) == (0, "done"), err
    assert (await roles.passwords())[0] != before[0]
    text: str = report["objections"][0]["text"]
    return text


async def test_a_role_is_not_rotated_too_soon_after_the_other(roles: Roles) -> None:
    text = await refused(roles, "too-soon", "--account", "odd", "--max-lifetime", "600")
    assert "it can take 600 s" in text


async def test_a_role_is_not_rotated_while_the_other_is_refused(roles: Roles) -> None:
    await roles.postgres.server.set_password(roles.postgres.usernames[1], "something else")
    text = await refused(roles, "other-refused", "--account", "odd")
    assert f"'{roles.postgres.usernames[1]}', which pools would have to fall back to, cannot log in" in text


async def test_a_role_is_not_rotated_while_the_other_has_old_sessions(roles: Roles) -> None:
    con = await roles.session(1)
    try:
        await asyncio.sleep(1.1)  # Vault's times are of whole seconds
        await roles.database.rotate("even")
        text = await refused(roles, "old-sessions", "--account", "odd")
        assert "1 session of " in text
    finally:
        await con.close()


async def test_old_sessions_of_a_rotated_role_are_ended_when_asked_for(roles: Roles) -> None:
    con = await roles.session(0)
    await asyncio.sleep(1.1)  # Vault's times are of whole seconds
    code, report, err = await roles.rotate("--account", "odd", "--end-sessions-after", "0")
    assert (code, report.get("outcome"), report["sessions_ended"]) == (0, "done", 1), err
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await con.fetchval("SELECT 1")


async def test_a_missing_right_is_found_by_the_plan(roles: Roles) -> None:
    mount = roles.database.mount
    policy = f'path "{mount}/static-creds/*" {{ capabilities = ["read"] }}'
    token = await roles.database.vault.token_for(policy)
    code, _, err = await roles.rotate("--dry-run", token=token)
    assert code == 2
    for role in ("odd", "even"):
        assert f'path "{mount}/rotate-role/{role}" {{ capabilities = ["update"] }}' in err


# Two static roles: Vault fails midway.


@pytest.fixture
def between(roles: Roles) -> Iterator[Between]:
    with Between.serving(roles.database.vault) as between:
        yield between


async def test_a_rotation_that_vault_did_although_it_failed_is_finished(roles: Roles, between: Between) -> None:
    before, between.after = await roles.passwords(), "/rotate-role/"
    code, report, err = await roles.rotate(url=between.url)
    assert (code, report.get("outcome")) == (0, "done"), err
    assert "Vault failed to change the password" in err
    assert (await roles.passwords())[0] != before[0]


async def test_a_rotation_that_vault_did_not_do_leaves_all_as_it_was(roles: Roles, between: Between) -> None:
    before, between.instead = await roles.passwords(), "/rotate-role/"
    code, report, err = await roles.rotate(url=between.url)
    assert (code, report.get("outcome")) == (5, "undone"), err
    assert "Vault did not change the password of" in report["error"]
    assert "the old one still works: POST" in report["error"]
    assert await roles.passwords() == before


async def test_a_password_that_vault_changed_and_did_not_keep_is_reported(roles: Roles, between: Between) -> None:
    """As if its storage failed after the database got the new one."""
    username, between.instead = roles.postgres.usernames[0], "/rotate-role/"
    change = roles.postgres.server.set_password(username, "what Vault has lost")
    between.then = lambda: asyncio.run(change)
    code, report, err = await roles.rotate(url=between.url)
    assert (code, report.get("outcome")) == (1, "failed"), err
    assert "the password that it shows does not work" in report["error"]
    code, report, err = await roles.rotate("--account", "even")
    assert (code, report["objections"][0]["gate"]) == (3, "other-refused"), err


@pytest.mark.parametrize("fails", [True, False])
async def test_a_vault_that_is_sealed_midway_leaves_an_outcome_to_look_at(
    roles: Roles, between: Between, fails: bool
) -> None:
    """Sealed as soon as it has changed the password; its answer is lost, or arrives."""
    vault = roles.database.vault
    between.after, between.fails = "/rotate-role/", fails
    between.then = vault.seal
    try:
        code, report, err = await roles.rotate(url=between.url)
    finally:
        await in_a_thread(vault.unseal)
    assert (code, report.get("outcome")) == (1, "failed"), err
    words = "it is unknown whether it did: POST" if fails else "says that it did, but now fails: GET"
    assert words in report["error"]
    assert "until `aiopqr check` says that this one can log in" in report["error"]
    code, report, err = await roles.rotate("--margin", "600")  # it had been done
    assert (code, report["objections"][0]["gate"]) == (3, "too-soon"), err


async def test_a_vault_that_is_sealed_from_the_start_changes_nothing(roles: Roles) -> None:
    vault = roles.database.vault
    await in_a_thread(vault.seal)
    try:
        code, _, err = await roles.rotate()
    finally:
        await in_a_thread(vault.unseal)
    assert code == 2
    assert "Vault is sealed" in err
