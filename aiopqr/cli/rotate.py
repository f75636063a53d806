"""``aiopqr rotate``: one rotation, for cron, a CronJob or a person: its options, its output and its exit codes."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

from ..credentials import Parity
from ..errors import AiopqrError
from ..rotation.errors import PathDown, RotationRefused, RotationUndone
from ..rotation.gates import Gate, Objection, Rules
from ..rotation.passwords import PasswordRule
from ..rotation.plan import Action, Plan
from ..rotation.rotator import Rotation, Rotator
from ..rotation.run import Announcing, Step
from ..rotation.stores.store import SecretStore
from ..rotation.vault_roles import VaultRoles, VaultRolesRotator
from ..rotation.words import counted
from .ops_input import (
    VAULT_HELP,
    admin_connect,
    admin_password,
    dsn_without_password,
    exactly_one,
    moment,
    open_store,
    run,
)

DONE, FAILED, NOT_TRIED, REFUSED, FINISHED, UNDONE, LEFT_TO_DO = 0, 1, 2, 3, 4, 5, 6

_STEP_TEXTS = {
    Step.CHECKED: "no gate objects, and nobody else rotates",
    Step.STAGED: "the new password is staged in the store",
    Step.ANNOUNCED: "pools have had the time to step aside",
    Step.ALTERED: "the database has it",
    Step.VERIFIED: "it logs in on the applications' path",
    Step.PROMOTED: "the store has it as the account's own",
    Step.ENDED: "the account's old sessions are ended",
}


def _force(gate: Gate, what: str) -> Any:
    return typer.Option(gate.flag, help=f"Although {what}.", rich_help_panel="Overriding a gate")


def rotate(
    admin: Annotated[str, typer.Option(help="The server and a role that may alter the accounts, without a password.")],
    dsn: Annotated[
        str, typer.Option(help="The applications' path to the database, through their proxy: no user, no password.")
    ],
    file: Annotated[Path | None, typer.Option(help="The pair as a JSON file.")] = None,
    secret: Annotated[str | None, typer.Option(help="The pair in AWS Secrets Manager: name or ARN.")] = None,
    vault: Annotated[str | None, typer.Option(help=VAULT_HELP)] = None,
    vault_roles: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Two static roles of Vault, odd and even: Vault changes the password, the gates say when."),
    ] = None,
    vault_mount: Annotated[str, typer.Option(help="The database engine of these roles.")] = "database",
    region: Annotated[str | None, typer.Option(help="The secret's AWS region.")] = None,
    endpoint_url: Annotated[str | None, typer.Option(help="Another endpoint of AWS Secrets Manager.")] = None,
    account: Annotated[Parity | None, typer.Option(help="Default: the one not changed last.")] = None,
    max_lifetime: Annotated[float, typer.Option(min=0, help="The longest max_lifetime of all pools, seconds.")] = 1800,
    refresh_interval: Annotated[float, typer.Option(min=0, help="Their longest refresh interval, seconds.")] = 60,
    margin: Annotated[float, typer.Option(min=0, help="For clocks and lagging stores, seconds.")] = 120,
    announce: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds between staging and changing a password, in which pools step aside. Add the store's own "
            "delay, up to 90 for a mounted Secret. 0: none.",
            show_default="--refresh-interval + 10",
        ),
    ] = None,
    valid_for: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="How long an account that has a VALID UNTIL is valid from now on, seconds.",
            show_default="as long as it was",
        ),
    ] = None,
    exempt_application: Annotated[
        list[str] | None, typer.Option(help="An application_name whose old sessions do not count; repeatable.")
    ] = None,
    assume_changed_before: Annotated[
        str | None, typer.Option(help="Your word for change times that the store does not know (ISO 8601).")
    ] = None,
    end_sessions_after: Annotated[
        float | None, typer.Option(min=0, help="End the account's old sessions, these seconds after the rotation.")
    ] = None,
    password_length: Annotated[int, typer.Option(min=1, help="Characters of the new password.")] = 32,
    password_alphabet: Annotated[
        str, typer.Option(help="What they are drawn from.", show_default="letters and digits")
    ] = PasswordRule().alphabet,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the admin role's password from standard input.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The outcome as JSON on standard output.")] = False,
    force_too_soon: Annotated[bool, _force(Gate.TOO_SOON, "the other account was changed a short while ago")] = False,
    force_other_refused: Annotated[bool, _force(Gate.OTHER_REFUSED, "the other account does not log in")] = False,
    force_old_sessions: Annotated[
        bool, _force(Gate.OLD_SESSIONS, "the other account has sessions from before its last change")
    ] = False,
    force_unseen_sessions: Annotated[
        bool, _force(Gate.UNSEEN_SESSIONS, "whether it has such sessions cannot be seen")
    ] = False,
    force_mismatch: Annotated[
        bool, _force(Gate.MISMATCH, "the stored password is not the database's: this repairs it")
    ] = False,
    force_open_stage: Annotated[
        bool, _force(Gate.OPEN_STAGE, "another account's rotation is open, which is given up")
    ] = False,
) -> None:
    """Change the password of one account of a pair, so that no pool is ever without one that works.

    The admin role's password comes from AIOPQR_ADMIN_PASSWORD, PGPASSWORD, the password file or --password-stdin. A run
    that was interrupted, or killed, is finished or undone by the next.

    \b
    Exit codes:
      0    done, or the plan of a dry run can be applied
      1    failed midway: run it again
      2    could not be tried; nothing was changed
      3    refused by a gate; nothing was changed
      4    finished an interrupted rotation, and began no new one
      5    failed and undone; all is as it was before
      6    done, but old sessions could not be ended: see to it by hand
      130  interrupted: run it again
    """
    exactly_one(file=file, secret=secret, vault=vault, vault_roles=vault_roles)
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
    rules = Rules(
        max_lifetime,
        refresh_interval,
        margin,
        frozenset(exempt_application or ()),
        moment(assume_changed_before, "--assume-changed-before"),
        valid_for,
    )
    password = admin_password(password_stdin)
    telling = Telling(as_json)

    def rotator(store: SecretStore | VaultRoles) -> Rotator:
        common: dict[str, Any] = {
            "admin": admin_connect(admin, password),
            "verify": dsn,
            "rules": rules,
            "end_sessions_after": end_sessions_after,
            "listener": telling.step,
        }
        if isinstance(store, VaultRoles):
            return VaultRolesRotator(roles=store, **common)
        return Rotator(
            store=store,
            passwords=PasswordRule(password_length, password_alphabet),
            announce=announce,
            on_announcing=telling.announcing,
            **common,
        )

    async def main() -> int:
        roles = VaultRoles(*vault_roles, mount=vault_mount) if vault_roles else None
        async with roles or open_store(file, secret, vault, region, endpoint_url) as store:
            forced = [gate for gate, is_forced in given.items() if is_forced]
            try:
                return await perform(rotator(store), telling, account, forced, dry_run=dry_run)
            except asyncio.CancelledError:
                telling.interrupted()
                raise

    with telling:
        run(main(), "rotate")


async def perform(
    rotator: Rotator, telling: Telling, account: Parity | None, forced: list[Gate], *, dry_run: bool = False
) -> int:
    """Plan, report, apply; the exit code."""
    plan = await rotator.plan(account=account, force=forced)
    if dry_run or plan.refusals:
        telling.plan(plan, dry_run, rotator.announce)
        return REFUSED if plan.refusals else DONE
    telling.begin(plan)
    try:
        rotation = await rotator.apply(plan)
    except RotationRefused as exc:
        telling.refused(exc.objections)
        return REFUSED
    except PathDown as exc:
        telling.failed("not tried", exc)
        return NOT_TRIED
    except RotationUndone as exc:
        telling.failed("undone", exc)
        return UNDONE
    except AiopqrError as exc:
        telling.failed("failed", exc)
        return FAILED
    telling.done(rotation)
    if rotation.warning:
        return LEFT_TO_DO
    return DONE if rotation.action is Action.ROTATE else FINISHED


@dataclass
class Telling:
    """What the operator reads: progress and sentences on standard error, an outcome on standard output."""

    as_json: bool = False
    _status: Status | None = None
    _is_overridden: bool = False
    _plan: Plan | None = None
    _done: Step | None = None

    def __post_init__(self) -> None:
        self._console = Console(stderr=True)

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status:
            self._status.stop()

    def begin(self, plan: Plan) -> None:
        self._plan = plan
        self._is_overridden = bool(plan.objections)
        for objection in plan.objections:
            self._say(f"overridden: {objection}", "yellow")
        text = f"{plan.action} {plan.username} ({plan.parity})"
        if self._console.is_terminal:
            self._status = Status(text, console=self._console)
            self._status.start()
        else:
            self._say(text)

    def step(self, step: Step) -> None:
        self._done = step
        text = _STEP_TEXTS[step]
        if step is Step.CHECKED and self._is_overridden:
            text = "no other gate objects, and nobody else rotates"
        self._say(text, "green")

    def announcing(self, announcing: Announcing) -> None:
        self._say(str(announcing), "yellow" if announcing.unheard else "")

    def interrupted(self) -> None:
        """Where a rotation stands that was cut short, and what to do."""
        plan = self._plan
        if plan is None or (self._done in (None, Step.CHECKED) and plan.action is Action.ROTATE):
            text = "nothing was changed"
        elif self._done in (Step.PROMOTED, Step.ENDED):
            text = f"the password of {plan.username!r} is changed; its old sessions may still be open"
        else:
            stands = _STEP_TEXTS[self._done] if self._done else "it was staged by an earlier run"
            text = f"the rotation of {plan.username!r} is under way ({stands}); run the same command, which finishes it"
        self._say(f"aiopqr rotate: interrupted: {text}", "yellow")

    def plan(self, plan: Plan, dry_run: bool, announce: float) -> None:
        if self.as_json:
            self._json(
                outcome="refused" if plan.refusals else "planned",
                dry_run=dry_run,
                action=plan.action,
                account=plan.parity,
                username=plan.username,
                steps=plan.steps,
                announce=announce,
                objections=[_as_json(objection, plan) for objection in plan.objections],
            )
            return
        if dry_run:
            print(f"{plan.action} {plan.username} ({plan.parity}):")
            print("\n".join(f"  {number}. {step}" for number, step in enumerate(plan.steps, 1)))
            if announce and plan.action is not Action.FINISH:
                print(f"Between staging and ALTER ROLE, pools have {announce:.0f} s to step aside.")
        for objection in plan.objections:
            if objection not in plan.refusals:
                self._say(f"overridden: {objection}", "yellow")
        self._objections(plan.refusals)

    def refused(self, objections: tuple[Objection, ...]) -> None:
        if self.as_json:
            self._json(outcome="refused", objections=[_as_json(objection) for objection in objections])
        else:
            self._objections(objections)

    def failed(self, outcome: str, exc: Exception) -> None:
        if self.as_json:
            self._json(outcome=outcome, error=str(exc))
        else:
            self._say(f"aiopqr rotate: {exc}", "red")

    def done(self, rotation: Rotation) -> None:
        if self.as_json:
            self._json(
                outcome="done" if rotation.action is Action.ROTATE else "finished",
                action=rotation.action,
                account=rotation.parity,
                username=rotation.username,
                changed_at=rotation.changed_at.isoformat(),
                sessions_ended=rotation.ended,
                warning=rotation.warning,
            )
            return
        what = "changed" if rotation.action is Action.ROTATE else "an interrupted rotation was finished"
        ended = ""
        if rotation.ended is not None and not rotation.warning:
            ended = f"; {counted(rotation.ended, 'old session')} ended"
        print(f"{rotation.username}: {what}{ended}")
        if rotation.warning:
            self._say(rotation.warning, "yellow")

    def _objections(self, objections: tuple[Objection, ...]) -> None:
        for objection in objections:
            flag = f" ({objection.gate.flag} overrides this)" if objection.gate.flag else ""
            self._say(f"refused [{objection.gate}]: {objection}{flag}", "red")

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _json(self, **values: Any) -> None:
        json.dump(values, sys.stdout, indent=2)
        print()


def _as_json(objection: Objection, plan: Plan | None = None) -> dict[str, Any]:
    return {
        "gate": objection.gate,
        "text": objection.text,
        "flag": objection.gate.flag,
        "overridden": plan is not None and objection not in plan.refusals,
        **objection.numbers,
    }
