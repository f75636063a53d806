"""The ``aiopqr rotate`` command, which runs one rotation: its options and its exit codes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from ...credentials import Parity
from ...errors import AiopqrError, ConfigurationError
from ...rotation.announcing import ANNOUNCE_MAX
from ...rotation.errors import PathDown, RotationRefused, RotationUndone, StoreNotWritable
from ...rotation.gates import Gate, Rules
from ...rotation.passwords import PasswordRule
from ...rotation.plan import Action
from ...rotation.rotator import Rotator
from ...rotation.stores.store import SecretStore
from ...rotation.vault_roles import VaultRoles, VaultRolesRotator
from ..ops_input import (
    VAULT_HELP,
    UsageError,
    admin_connect,
    admin_password,
    dsn_without_password,
    exactly_one,
    moment,
    open_store,
    run,
)
from .output import Output

DONE, FAILED, NOT_TRIED, REFUSED, FINISHED, UNDONE, LEFT_TO_DO = 0, 1, 2, 3, 4, 5, 6


def _force(gate: Gate, what: str) -> Any:
    return typer.Option(gate.flag, help=f"Rotate even though {what}.", rich_help_panel="Overriding a gate")


def rotate(
    admin: Annotated[
        str,
        typer.Option(
            help="DSN of a role that may alter the accounts, without a password. It must lead to the server itself, "
            "not to a proxy."
        ),
    ],
    dsn: Annotated[
        str,
        typer.Option(help="The applications' DSN, through their proxy if they use one, without user and password."),
    ],
    file: Annotated[Path | None, typer.Option(help="JSON file that contains the pair.")] = None,
    secret: Annotated[
        str | None, typer.Option(help="Name or ARN of the secret in AWS Secrets Manager that contains the pair.")
    ] = None,
    vault: Annotated[str | None, typer.Option(help=VAULT_HELP)] = None,
    vault_roles: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Names of two static roles in Vault: first odd, then even. Vault changes the password, but only if "
            "the gates allow it."
        ),
    ] = None,
    vault_mount: Annotated[str, typer.Option(help="Mount path of the database engine with these roles.")] = "database",
    region: Annotated[str | None, typer.Option(help="AWS region of the secret.")] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="URL to use for AWS Secrets Manager instead of the region's.")
    ] = None,
    account: Annotated[
        Parity | None, typer.Option(help="The account to change. Default: the one that was changed longer ago.")
    ] = None,
    max_lifetime: Annotated[
        float, typer.Option(min=0, help="The longest max_lifetime of any pool, in seconds.")
    ] = 1800,
    refresh_interval: Annotated[
        float, typer.Option(min=0, help="The longest refresh interval of any pool, in seconds.")
    ] = 60,
    margin: Annotated[
        float, typer.Option(min=0, help="Safety margin for clocks that differ and slow stores, in seconds.")
    ] = 120,
    announce: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=ANNOUNCE_MAX,
            help="How long pools get to step aside, in seconds, between staging the new password and changing it. Add "
            "the store's own delay, which is up to 90 for a mounted Secret. 0: do not announce the change.",
            show_default="--refresh-interval + 10",
        ),
    ] = None,
    valid_for: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="If the account has a VALID UNTIL: how long it is to be valid, in seconds from now. At least the sum "
            "of --max-lifetime, --refresh-interval and --margin.",
            show_default="as long as before",
        ),
    ] = None,
    exempt_application: Annotated[
        list[str] | None, typer.Option(help="Ignore old sessions with this application_name. May be repeated.")
    ] = None,
    assume_changed_before: Annotated[
        str | None,
        typer.Option(help="If the store does not say when passwords were changed, assume before this time (ISO 8601)."),
    ] = None,
    end_sessions_after: Annotated[
        float | None, typer.Option(min=0, help="End the account's old sessions this many seconds after the rotation.")
    ] = None,
    password_length: Annotated[int, typer.Option(min=1, help="Number of characters in the new password.")] = 32,
    password_alphabet: Annotated[
        str, typer.Option(help="Characters that the new password may contain.", show_default="letters and digits")
    ] = PasswordRule().alphabet,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the admin role's password from standard input.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on standard output.")] = False,
    force_too_soon: Annotated[bool, _force(Gate.TOO_SOON, "the other account was changed too recently")] = False,
    force_other_refused: Annotated[bool, _force(Gate.OTHER_REFUSED, "the other account cannot log in")] = False,
    force_old_sessions: Annotated[
        bool, _force(Gate.OLD_SESSIONS, "the other account has sessions from before its last change")
    ] = False,
    force_unseen_sessions: Annotated[
        bool, _force(Gate.UNSEEN_SESSIONS, "the admin role cannot see whether the other account has such sessions")
    ] = False,
    force_mismatch: Annotated[
        bool, _force(Gate.MISMATCH, "the database does not accept the stored password; this repairs it")
    ] = False,
    force_open_stage: Annotated[
        bool, _force(Gate.OPEN_STAGE, "the other account's rotation is not finished; this abandons it")
    ] = False,
) -> None:
    """Change the password of one account without locking out any pool.

    Say where the pair is with one of --file, --secret, --vault and --vault-roles. The admin role's password comes from
    AIOPQR_ADMIN_PASSWORD, PGPASSWORD, the password file or --password-stdin. If a run is interrupted or killed, the
    next one finishes or undoes the rotation.

    \b
    Exit codes:
      0    done; or, in a dry run, the plan can be applied
      1    failed midway: run it again
      2    could not begin; nothing was changed
      3    refused by a gate; nothing was changed
      4    finished an interrupted rotation, and did not begin a new one
      5    failed and was undone; everything is as it was before
      6    done, but old sessions could not be ended: end them by hand
      130  interrupted: run it again; with --vault-roles, do what the output says
    """
    exactly_one(file=file, secret=secret, vault=vault, vault_roles=vault_roles)
    if vault_roles and announce:
        raise UsageError("--announce has no effect with --vault-roles, because Vault changes the password immediately")
    given = {
        Gate.TOO_SOON: force_too_soon,
        Gate.OTHER_REFUSED: force_other_refused,
        Gate.OLD_SESSIONS: force_old_sessions,
        Gate.UNSEEN_SESSIONS: force_unseen_sessions,
        Gate.MISMATCH: force_mismatch,
        Gate.OPEN_STAGE: force_open_stage,
    }
    admin = dsn_without_password(admin, "--admin", user_allowed=True)
    dsn = dsn_without_password(dsn, "--dsn", user_allowed=False)
    try:
        rules = Rules(
            max_lifetime,
            refresh_interval,
            margin,
            frozenset(exempt_application or ()),
            moment(assume_changed_before, "--assume-changed-before"),
            valid_for,
        )
    except ConfigurationError as exc:
        raise UsageError(str(exc)) from None
    password = admin_password(password_stdin)
    output = Output(as_json)

    def rotator(store: SecretStore | VaultRoles) -> Rotator:
        common: dict[str, Any] = {
            "admin": admin_connect(admin, password),
            "verify": dsn,
            "rules": rules,
            "end_sessions_after": end_sessions_after,
            "listener": output.step,
        }
        if isinstance(store, VaultRoles):
            return VaultRolesRotator(roles=store, **common)
        return Rotator(
            store=store,
            passwords=PasswordRule(password_length, password_alphabet),
            announce=announce,
            on_announcing=output.announcing,
            **common,
        )

    async def main() -> int:
        roles = VaultRoles(*vault_roles, mount=vault_mount) if vault_roles else None
        async with roles or open_store(file, secret, vault, region, endpoint_url) as store:
            forced = [gate for gate, is_forced in given.items() if is_forced]
            try:
                return await perform(rotator(store), output, account, forced, dry_run=dry_run)
            except asyncio.CancelledError:
                output.interrupted()
                raise

    with output:
        run(main(), "rotate")


async def perform(
    rotator: Rotator, output: Output, account: Parity | None, forced: list[Gate], *, dry_run: bool = False
) -> int:
    """Plan a rotation, report the plan, apply it, and return the exit code."""
    plan = await rotator.plan(account=account, force=forced)
    if dry_run or plan.refusals:
        output.plan(plan, dry_run, rotator.announce)
        return REFUSED if plan.refusals else DONE
    output.begin(plan)
    try:
        rotation = await rotator.apply(plan)
    except RotationRefused as exc:
        output.refused(exc.objections)
        return REFUSED
    except (PathDown, StoreNotWritable) as exc:
        output.failed("not tried", exc)
        return NOT_TRIED
    except RotationUndone as exc:
        output.failed("undone", exc)
        return UNDONE
    except AiopqrError as exc:
        if not output.has_progress:
            output.failed("not tried", exc)
            return NOT_TRIED
        output.failed("failed", exc)
        return FAILED
    output.done(rotation)
    if rotation.warning:
        return LEFT_TO_DO
    return DONE if rotation.action is Action.ROTATE else FINISHED
