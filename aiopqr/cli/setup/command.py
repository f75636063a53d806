"""The ``aiopqr setup`` command: its options, its steps and its output."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import typer

from ..._login import no_frames
from ...credentials import Credential, CredentialPair, Parity, Secret
from ...errors import ConfigurationError, RotationError, describe
from ...rotation.database import Database
from ...rotation.errors import StoreConflict, StoreError
from ...rotation.gates import Rules
from ...rotation.passwords import PasswordRule
from ...rotation.sql import identifier
from ...rotation.words import moment
from ..ops_input import admin_connect, admin_password, dsn_without_password, open_store, run
from .roles import STATE, Change, Role, changes, differences, role_of

DONE, NEEDS_ATTENTION = 0, 3


def setup(
    admin: Annotated[str, typer.Option(help="DSN of a role that may create roles, without a password.")],
    owner: Annotated[str, typer.Option(help="The application's own role, which owns its tables and other objects.")],
    odd: Annotated[
        str | None, typer.Option(help="Name of the odd account. Default: the owner's name plus _odd.")
    ] = None,
    even: Annotated[
        str | None, typer.Option(help="Name of the even account. Default: the owner's name plus _even.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Write new passwords to this JSON file, for pools and `rotate` to read.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="Write new passwords to a new secret of this name in AWS Secrets Manager.")
    ] = None,
    vault: Annotated[
        str | None, typer.Option(help="Write new passwords to a new secret in a KV engine of Vault: MOUNT/PATH.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="AWS region of the secret.")] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="URL to use for AWS Secrets Manager instead of the region's.")
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the admin role's password from standard input.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on standard output.")] = False,
) -> None:
    """Create or repair the two accounts of an application. A second run changes nothing.

    Both accounts can log in, are members of the owner role, and act as it, so both can use what either creates. Both
    also get the owner's settings. If an account already exists, its LOGIN, INHERIT, membership and settings are
    repaired, but its password and its VALID UNTIL are not touched: rotations change those. The owner can still log in
    until you run ALTER ROLE owner NOLOGIN.

    Exit codes: 0 done, or nothing to do; 2 could not be done, and nothing was changed; 3 done, but something is left
    to do by hand; 130 interrupted.
    """
    admin = dsn_without_password(admin, "--admin", user_allowed=True)
    password = admin_password(password_stdin)
    names = odd or f"{owner}_odd", even or f"{owner}_even"
    if len({owner, *names}) != 3:
        raise typer.BadParameter("the owner, --odd and --even must be three different roles")
    if sum(place is not None for place in (file, secret, vault)) > 1:
        raise typer.BadParameter("give at most one of --file, --secret and --vault")
    connect = admin_connect(admin, password)

    async def main() -> int:
        async with contextlib.AsyncExitStack() as stack:
            store = None
            if file or secret or vault:
                store = await stack.enter_async_context(open_store(file, secret, vault, region, endpoint_url))
            done = await perform(Database(connect, admin), owner, names, store, dry_run=dry_run)
        done.show(as_json=as_json, dry_run=dry_run)
        return NEEDS_ATTENTION if done.attention else DONE

    run(main(), "setup")


@dataclass
class Outcome:
    """What was changed (or would be, in a dry run), and what is left for a person to do."""

    changes: list[Change] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self, *, as_json: bool, dry_run: bool) -> None:
        if as_json:
            shown = [{"text": change.text, "sql": change.shown} for change in self.changes]
            print(json.dumps({"changes": shown, "attention": self.attention, "notes": self.notes}, indent=2))
            return
        for change in self.changes:
            print(f"-- {change.text}\n{change.shown};" if dry_run else change.text)
        if not self.changes:
            print("-- nothing to change" if dry_run else "nothing to change")
        for line in self.attention:
            typer.echo(f"to do: {line}", err=True)
        for line in self.notes:
            typer.echo(line if line.startswith("next: ") else f"note: {line}", err=True)


async def perform(
    database: Database, owner: str, names: tuple[str, str], store: Any, *, dry_run: bool = False
) -> Outcome:
    """Read the roles, change them in one transaction, and report.

    New passwords are written to the store just before the commit, when nothing else can be refused. So a run that fails
    leaves no secret behind for accounts that do not exist.
    """
    async with database.connected() as con:
        version = con.get_server_version().major
        async with con.transaction():
            found = await _found(con, owner, *names)
            if owner not in found:
                raise ConfigurationError(f"role {owner!r} does not exist: create it, or name the application's role")
            _check_owner(found[owner])
            accounts = {name: found.get(name) for name in names}
            created = [name for name, role in accounts.items() if role is None]
            if created and not store:
                raise ConfigurationError(
                    f"nobody would know the password of {' and '.join(map(repr, created))}, so nothing was changed: "
                    "say where to write new passwords, with --file, --secret or --vault"
                )
            stored = await _Stored.of(store) if store else None
            passwords = stored.for_new(names, created) if stored else {}
            outcome = Outcome(list(changes(found[owner], accounts, passwords, version=version)))
            if not dry_run:
                await _apply(con, outcome.changes)
                found = await _found(con, owner, *names)
                if stored:
                    await stored.save()
        if stored:
            outcome.attention += stored.missing([name for name in names if name not in created])
        _comment(outcome, found, names, dry_run)
        if not dry_run and stored and not outcome.attention:
            outcome.notes += await _next_steps(con, stored, is_new=bool(created))
    return outcome


def _check_owner(owner: Role) -> None:
    """Both accounts act as the owner, so it must not be a role that may do everything."""
    power = "is a superuser" if owner.is_superuser else "may bypass row security (BYPASSRLS)"
    if owner.is_superuser or owner.bypasses_row_security:
        raise ConfigurationError(
            f"role {owner.name!r} {power}, and both accounts would have the same power. Nothing was changed. Give the "
            "application an ordinary role of its own"
        )


async def _next_steps(con: Any, stored: _Stored, *, is_new: bool) -> list[str]:
    """What to do next, including the grants that the admin role lacks."""
    grants = await con.fetch(
        "SELECT role FROM unnest(ARRAY['pg_read_all_stats', 'pg_signal_backend']) role "
        "WHERE NOT pg_has_role(current_user, role, 'MEMBER')"
    )
    admin = identifier(await con.fetchval("SELECT session_user::text"))
    why = {
        "pg_read_all_stats": "without it, the gate unseen-sessions refuses to rotate",
        "pg_signal_backend": "only needed for --end-sessions-after",
    }
    steps = [f"next: as a superuser, run GRANT {row['role']} TO {admin} ({why[row['role']]})" for row in grants]
    possible = moment(datetime.now(UTC) + timedelta(seconds=Rules().spacing))
    when = f", which with its default options is possible from {possible} on" if is_new else ""
    return [
        *steps,
        f"next: let the pools read {stored.store}, then run `aiopqr check`",
        f"next: run `aiopqr rotate`{when}",
    ]


async def _found(con: Any, *names: str) -> dict[str, Role]:
    return {row["rolname"]: role_of(row) for row in await con.fetch(STATE, list(names))}


@dataclass
class _Stored:
    """The passwords that a store has, or will have; ``problem`` says why none could be read."""

    store: Any
    known: Mapping[str, Secret] = field(default_factory=dict)
    problem: str = ""
    _new: CredentialPair | None = None

    @classmethod
    async def of(cls, store: Any) -> _Stored:
        try:
            pair = (await store.read()).pair
        except StoreError as exc:
            return cls(store, problem=str(exc))
        return cls(store, {account.username: account.password for account in (pair.odd, pair.even) if account})

    def for_new(self, names: tuple[str, str], created: list[str]) -> Mapping[str, Secret]:
        """The passwords of new accounts: generated now, or by an earlier run that stored them and was then killed."""
        if len(created) == 2 and self.problem:
            odd, even = (Credential(name, PasswordRule().generate()) for name in names)
            self._new = CredentialPair(odd, even)
            return {odd.username: odd.password, even.username: even.password}
        if unknown := set(created) - set(self.known):
            why = f" ({self.problem})" if self.problem else ""
            who = ", ".join(map(repr, sorted(unknown)))
            raise ConfigurationError(f"{self.store} has no password for {who}{why}, so nothing was changed")
        return self.known

    async def save(self) -> None:
        """Write new passwords. Raises :class:`ConfigurationError` if there already is a secret that cannot be read."""
        if self._new is None:
            return
        try:
            await self.store.create(self._new, changed_at=datetime.now(UTC))
            return
        except StoreConflict as exc:
            problem = f"{exc}, but cannot be used: {self.problem}"
        raise ConfigurationError(problem)

    def missing(self, existing: list[str]) -> list[str]:
        """What to do if accounts exist whose passwords are not in the store."""
        unknown = [repr(name) for name in existing if name not in self.known]
        if not unknown:
            return []
        why = f" ({self.problem})" if self.problem else ""
        text = (
            f"{self.store} has no password for {', '.join(unknown)}{why}, and setup never changes the password of an "
            "existing account: name the file or secret that has it; or, if nothing uses the accounts, DROP ROLE both "
            "and run this again"
        )
        return [text]


async def _apply(con: Any, wanted: list[Change]) -> None:
    problem = ""
    for change in wanted:
        try:
            with no_frames():
                await con.execute(change.sql())
        except asyncpg.PostgresError as exc:
            problem = f"cannot {change.text}: {describe(exc)}"
            break
    if problem:  # raised here: the driver's error holds the statement
        raise RotationError(f"{problem}. Nothing was changed, and no password was written.")


def _comment(
    outcome: Outcome,
    found: Mapping[str, Role],
    names: tuple[str, str],
    dry: bool,
) -> None:
    if all(name in found for name in names):
        owner = next(role for name, role in found.items() if name not in names)
        if not dry:
            outcome.attention += differences(owner, [found[name] for name in names])
        for parity, name in zip(Parity, names, strict=True):
            if end := found[name].valid_until:
                is_over = end <= datetime.now(UTC)
                text = f"the password of {name!r} {'expired' if is_over else 'expires'} at {moment(end)} (VALID UNTIL)"
                renewal = f"`aiopqr rotate --account {parity}` renews it" if is_over else "each rotation renews it"
                (outcome.attention if is_over else outcome.notes).append(f"{text}: {renewal}")
        if owner.can_login:
            outcome.notes.append(
                f"{owner.name!r} itself can still log in; once nothing uses it any more, run "
                f"ALTER ROLE {identifier(owner.name)} NOLOGIN"
            )
