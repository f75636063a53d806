"""The output of ``aiopqr rotate``: progress and sentences for a person, or JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.status import Status

from ...rotation.announcing import Announcing
from ...rotation.gates import Objection
from ...rotation.plan import Action, Plan
from ...rotation.rotator import Rotation
from ...rotation.run import Step
from ...rotation.vault_roles import RolePlan
from ...rotation.words import counted

_STEP_TEXTS = {
    Step.CHECKED: "all gates passed, and no other rotation is running",
    Step.STAGED: "the new password is staged in the store",
    Step.ANNOUNCED: "pools have had time to step aside",
    Step.ALTERED: "the database has the new password",
    Step.VERIFIED: "a login with it succeeded over the applications' path",
    Step.PROMOTED: "the store now has it as the account's current password",
    Step.ENDED: "the account's old sessions have been ended",
}


@dataclass
class Output:
    """Prints progress and sentences on standard error, and the outcome on standard output."""

    as_json: bool = False
    _status: Status | None = None
    _is_overridden: bool = False
    _plan: Plan | None = None
    _done: Step | None = None

    def __post_init__(self) -> None:
        self._console = Console(stderr=True)

    def __enter__(self) -> Output:
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

    @property
    def has_progress(self) -> bool:
        """Whether a step was done. The first one, which checks, comes before every change."""
        return self._done is not None

    def step(self, step: Step) -> None:
        self._done = step
        text = _STEP_TEXTS[step]
        if step is Step.CHECKED and self._is_overridden:
            text = "all other gates passed, and no other rotation is running"
        self._say(text, "green")

    def announcing(self, announcing: Announcing) -> None:
        self._say(str(announcing), "yellow" if announcing.unaware else "")

    def interrupted(self) -> None:
        """Say how far an interrupted rotation got, and what to do next."""
        plan = self._plan
        if plan is None or (self._done is None and plan.action is Action.ROTATE):
            text = "nothing was changed"
        elif isinstance(plan, RolePlan) and self._done in (Step.CHECKED, Step.ALTERED):
            # Another run would not finish this rotation.
            may_have = "has" if self._done is Step.ALTERED else "may have"
            text = (
                f"Vault {may_have} changed the password of {plan.username!r}. Do not change the other account until "
                "`aiopqr check` says that this one can log in"
            )
        elif isinstance(plan, RolePlan) or self._done in (Step.PROMOTED, Step.ENDED):
            text = f"the password of {plan.username!r} has been changed; its old sessions may still be open"
        elif self._done is Step.CHECKED and plan.action is Action.ROTATE:  # its new password may be staged by now
            text = f"the password of {plan.username!r} has not been changed yet; run the same command again to continue"
        else:
            progress = _STEP_TEXTS[self._done] if self._done else "an earlier run staged its new password"
            unfinished = f"the rotation of {plan.username!r} is not finished ({progress})"
            text = f"{unfinished}; run the same command again to finish it"
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
                print(f"Between staging and ALTER ROLE, pools get {announce:.0f} s to step aside.")
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
        what = "password changed" if rotation.action is Action.ROTATE else "finished an interrupted rotation"
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
