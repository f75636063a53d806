"""The decision: every gate with its numbers, every state that a crash can leave, and what may be overridden."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.rotation.errors import RotationRefused
from aiopqr.rotation.gates import Facts, Gate, LoginResult, Objection, Rules, Session
from aiopqr.rotation.plan import Action, Plan, decide
from aiopqr.rotation.stores.store import StoredSecret

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
RULES = Rules(max_lifetime=1000.0, refresh_interval=60.0, margin=40.0)
ODD, EVEN = Parity.ODD, Parity.EVEN
YES = LoginResult(True)
REFUSED = LoginResult(False, True, "28P01")
DOWN = LoginResult(False, False, "connection refused")
STAGED = Credential("app_odd", "new")


def facts(
    *,
    odd_age: float | None = 5000.0,
    even_age: float | None = 3000.0,
    odd: LoginResult = YES,
    even: LoginResult = YES,
    staged: bool = False,
    pending: LoginResult | None = None,
    sessions: tuple[Session, ...] = (),
    active: Parity = EVEN,
) -> Facts:
    pair = CredentialPair(
        Credential("app_odd", "o"), Credential("app_even", "e"), active, pending=STAGED if staged else None
    )
    secret = StoredSecret(
        pair,
        "r1",
        odd_changed_at=_ago(odd_age),
        even_changed_at=_ago(even_age),
        staged_at=_ago(20.0) if staged else None,
    )
    return Facts(NOW, secret, {ODD: odd, EVEN: even}, pending, sessions)


def _ago(seconds: float | None) -> datetime | None:
    return None if seconds is None else NOW - timedelta(seconds=seconds)


def session(parity: Parity, age: float | None, application: str = "orders") -> Session:
    return Session(parity, 4711, application, _ago(age))


def gates(plan: Plan) -> list[Gate]:
    return [objection.gate for objection in plan.objections]


def test_with_nothing_against_it_the_account_not_changed_last_is_rotated() -> None:
    plan = decide(facts(), RULES)
    assert (plan.action, plan.parity, plan.objections) == (Action.ROTATE, ODD, ())
    assert decide(facts(odd_age=3000.0, even_age=5000.0), RULES).parity is EVEN


def test_the_operator_chooses_the_account() -> None:
    assert decide(facts(), RULES, account=EVEN).parity is EVEN


@pytest.mark.parametrize("active", list(Parity))
def test_with_equal_or_unknown_times_the_account_that_is_not_active_is_taken(active: Parity) -> None:
    assert decide(facts(odd_age=None, even_age=None, active=active), RULES).parity is active.other
    assert decide(facts(odd_age=5000.0, even_age=5000.0, active=active), RULES).parity is active.other


def test_an_account_of_unknown_age_counts_as_changed_last() -> None:
    assert decide(facts(odd_age=None), RULES).parity is EVEN


@pytest.mark.parametrize(("age", "refused"), [(1099.0, True), (1100.0, False)])
def test_the_other_accounts_change_must_be_a_lifetime_an_interval_and_a_margin_ago(age: float, refused: bool) -> None:
    plan = decide(facts(even_age=age), RULES, account=ODD)
    assert gates(plan) == ([Gate.TOO_SOON] if refused else [])


def test_too_soon_tells_its_numbers() -> None:
    [objection] = decide(facts(even_age=90.0), RULES, account=ODD).objections
    assert objection.numbers == {
        "account": "even",
        "elapsed": 90.0,
        "needed": 1100.0,
        "max_lifetime": 1000.0,
        "refresh_interval": 60.0,
        "margin": 40.0,
        "possible_at": "2025-03-01T12:16:50+00:00",
        "possible_in": 1010.0,
    }
    assert "'app_even' was changed 90 s ago; it can take 1100 s" in objection.text
    assert objection.text.endswith("The next rotation is possible at 2025-03-01 12:16:50 UTC, in 17 min")


def test_a_change_not_known_counts_as_just_now() -> None:
    [objection] = decide(facts(even_age=None), RULES, account=ODD).objections
    assert objection.gate is Gate.TOO_SOON
    assert objection.numbers["elapsed"] is None
    assert "--assume-changed-before" in objection.text


@pytest.mark.parametrize(("before", "refused"), [(1099.0, True), (1101.0, False)])
def test_an_operators_word_stands_in_for_a_change_not_known(before: float, refused: bool) -> None:
    rules = dataclasses.replace(RULES, assume_changed_before=NOW - timedelta(seconds=before))
    plan = decide(facts(odd_age=None, even_age=None), rules, account=ODD)
    assert gates(plan) == ([Gate.TOO_SOON] if refused else [])


def test_an_operators_word_never_overrules_a_change_that_is_known() -> None:
    rules = dataclasses.replace(RULES, assume_changed_before=NOW - timedelta(days=1))
    assert gates(decide(facts(even_age=10.0), rules, account=ODD)) == [Gate.TOO_SOON]


def test_a_change_in_the_future_is_refused_as_a_wrong_clock() -> None:
    [objection] = decide(facts(even_age=-3600.0), RULES, account=ODD).objections
    assert "60 min in the future" in objection.text


@pytest.mark.parametrize("login", [REFUSED, DOWN])
def test_the_other_account_must_log_in_right_now(login: LoginResult) -> None:
    [objection] = decide(facts(even=login), RULES, account=ODD).objections
    assert objection.gate is Gate.OTHER_REFUSED
    assert login.text in objection.text


def test_a_session_of_the_other_account_from_before_its_change_is_refused() -> None:
    old = (session(EVEN, 3001.0, "orders"), session(EVEN, 3500.0, "orders"), session(EVEN, 4000.0, ""))
    [objection] = decide(facts(sessions=(*old, session(EVEN, 2999.0))), RULES).objections
    assert objection.gate is Gate.OLD_SESSIONS
    assert objection.numbers == {"account": "even", "sessions": 3, "oldest": 1000.0}
    assert objection.text.count("(orders, local socket, ") == 2
    assert "(no application name, local socket, 67 min old)" in objection.text


def test_old_sessions_of_the_account_to_be_changed_do_not_matter() -> None:
    assert decide(facts(sessions=(session(ODD, 9000.0), session(ODD, None))), RULES).objections == ()


def test_sessions_that_cannot_be_seen_are_a_refusal_of_their_own() -> None:
    [objection] = decide(facts(sessions=(session(EVEN, None),)), RULES).objections
    assert objection.gate is Gate.UNSEEN_SESSIONS
    assert "pg_read_all_stats" in objection.text


def test_exempted_applications_do_not_count() -> None:
    rules = dataclasses.replace(RULES, exempt_applications=frozenset({"replicator"}))
    sessions = (session(EVEN, 9000.0, "replicator"), session(EVEN, None, "replicator"))
    assert decide(facts(sessions=sessions), rules).objections == ()


@pytest.mark.parametrize("login", [REFUSED, DOWN])
def test_a_stored_password_that_the_database_does_not_accept_is_refused(login: LoginResult) -> None:
    [objection] = decide(facts(odd=login), RULES).objections
    assert objection.gate is Gate.MISMATCH
    assert "'app_odd'" in objection.text


def test_a_stage_not_in_force_is_resumed_whatever_account_is_next() -> None:
    plan = decide(facts(staged=True, odd_age=3000.0, even_age=5000.0), RULES)
    assert (plan.action, plan.parity, plan.objections) == (Action.RESUME, ODD, ())


def test_a_stage_in_force_is_finished_and_no_gate_speaks_against_that() -> None:
    situation = facts(
        staged=True,
        odd=REFUSED,
        pending=YES,
        even=REFUSED,
        even_age=1.0,
        sessions=(session(EVEN, 9000.0), session(EVEN, None)),
    )
    plan = decide(situation, RULES)
    assert (plan.action, plan.parity, plan.objections) == (Action.FINISH, ODD, ())


def test_a_stage_is_resumed_only_past_the_gates() -> None:
    plan = decide(facts(staged=True, even=REFUSED, even_age=1.0), RULES)
    assert plan.action is Action.RESUME
    assert gates(plan) == [Gate.TOO_SOON, Gate.OTHER_REFUSED]


def test_an_account_that_accepts_neither_stored_nor_staged_password_is_a_mismatch() -> None:
    plan = decide(facts(staged=True, odd=REFUSED, pending=REFUSED), RULES)
    assert (plan.action, gates(plan)) == (Action.RESUME, [Gate.MISMATCH])
    assert "neither the stored nor the staged" in plan.objections[0].text


def test_choosing_the_other_account_while_a_stage_is_open_is_refused() -> None:
    plan = decide(facts(staged=True), RULES, account=EVEN)
    assert Gate.OPEN_STAGE in gates(plan)
    assert "not finished (it began 20 s ago)" in plan.objections[0].text


def test_a_forced_open_stage_is_given_up_first() -> None:
    plan = decide(facts(staged=True), RULES, account=EVEN, forced=[Gate.OPEN_STAGE])
    assert (plan.action, plan.parity, plan.abandons, plan.refusals) == (Action.ROTATE, EVEN, "app_odd", ())


def test_an_open_stage_whose_password_may_be_in_force_is_never_given_up() -> None:
    situation = facts(staged=True, odd=REFUSED, pending=YES)
    plan = decide(situation, RULES, account=EVEN, forced=list(Gate))
    assert [objection.gate for objection in plan.refusals] == [Gate.OPEN_STAGE]


@pytest.mark.parametrize(
    "gate", [Gate.TOO_SOON, Gate.OTHER_REFUSED, Gate.MISMATCH, Gate.OLD_SESSIONS, Gate.UNSEEN_SESSIONS]
)
def test_each_gate_is_overridden_by_its_own_flag_alone(gate: Gate) -> None:
    everything = facts(odd=REFUSED, even=REFUSED, even_age=1.0, sessions=(session(EVEN, 9000.0), session(EVEN, None)))
    before = decide(everything, RULES, account=ODD)
    after = decide(everything, RULES, account=ODD, forced=[gate])
    assert gate in gates(after)  # it is still reported
    assert {objection.gate for objection in before.refusals} - {objection.gate for objection in after.refusals} == {
        gate
    }


def test_nothing_overrides_a_rotation_that_is_running() -> None:
    assert Gate.IN_PROGRESS.flag is None
    assert Gate.IN_PROGRESS not in decide(facts(), RULES, forced=list(Gate)).forced


def test_a_plan_with_an_objection_raises_all_of_them() -> None:
    plan = decide(facts(odd=REFUSED, even=REFUSED), RULES)
    with pytest.raises(RotationRefused, match=r"\[other-refused\].*\[mismatch\]") as caught:
        plan.raise_for_refusals()
    assert [type(objection) for objection in caught.value.objections] == [Objection, Objection]


def test_no_decision_without_force_ever_touches_an_account_whose_other_does_not_work() -> None:
    logins, ages = (YES, REFUSED, DOWN), (None, 1.0, 5000.0)
    for odd, even, odd_age, even_age, staged, pending, account in itertools.product(
        logins, logins, ages, ages, (False, True), (None, YES, REFUSED), (None, ODD, EVEN)
    ):
        situation = facts(odd=odd, even=even, odd_age=odd_age, even_age=even_age, staged=staged, pending=pending)
        plan = decide(situation, RULES, account=account)
        if plan.refusals or plan.action is Action.FINISH:
            continue
        other = plan.parity.other
        assert situation.logins[other].accepted
        changed = situation.secret.changed_at(other)
        assert changed is not None
        assert (NOW - changed).total_seconds() >= RULES.spacing


def test_the_steps_and_texts_of_a_plan_show_no_password() -> None:
    plan = decide(facts(staged=True, odd=REFUSED, even=REFUSED), RULES)
    shown = repr(plan) + " ".join(plan.steps) + "".join(map(str, plan.objections))
    assert "Secret('o')" not in shown
    assert "new'" not in shown


# Which sessions the rotator sees.


def test_old_sessions_are_listed_with_who_and_how_old_they_are() -> None:
    old = Session(EVEN, 4711, "orders", _ago(3090.0), "10.0.0.3")
    local = Session(EVEN, 4712, "batch", _ago(7200.0))
    [objection] = decide(facts(sessions=(old, local)), RULES).objections
    assert "pid 4712 (batch, local socket, 2.0 h old), pid 4711 (orders, 10.0.0.3, 52 min old)" in objection.text
    assert "PgBouncer" not in objection.text


def test_many_old_sessions_are_listed_in_part() -> None:
    old = tuple(Session(EVEN, number, "orders", _ago(4000.0), "10.0.0.3") for number in range(20))
    [objection] = decide(facts(sessions=old), RULES).objections
    assert objection.text.count("pid ") == 8
    assert objection.text.endswith("12 more")


@pytest.mark.parametrize(("second", "explained"), [("10.0.0.9", True), ("10.0.0.10", False)])
def test_a_poolers_server_connections_are_recognised(second: str, explained: bool) -> None:
    old = (Session(EVEN, 1, "", _ago(4000.0), "10.0.0.9"), Session(EVEN, 2, "", _ago(4000.0), second))
    [objection] = decide(facts(sessions=old), RULES).objections
    assert ("server_lifetime" in objection.text) is explained


# VALID UNTIL, and roles that do not exist.


def expiring(parity: Parity, end: datetime, **options: Any) -> Facts:
    return dataclasses.replace(facts(**options), valid_until={parity: end})


def test_a_rotation_renews_valid_until_for_as_long_as_it_was() -> None:
    found = expiring(ODD, NOW + timedelta(days=30, seconds=-5000), odd_age=5000.0)
    plan = decide(found, RULES)
    assert (plan.parity, plan.valid_until) == (ODD, NOW + timedelta(days=30))
    assert "VALID UNTIL 2025-03-31 12:00:00 UTC" in plan.steps[1]
    assert decide(found, RULES, account=EVEN).valid_until is None


@pytest.mark.parametrize(
    ("end", "age", "valid_for", "days"),
    [
        (timedelta(days=-1000), 5000.0, None, 90),  # it ended before it was last changed: its length is unknown
        (timedelta(days=200), None, None, 200),
        (timedelta(days=1), None, None, 90),
        (timedelta(days=30), 5000.0, 86400.0, 1),
    ],
)
def test_where_nobody_knows_how_long_it_was_valid_it_is_ninety_days(
    end: timedelta, age: float | None, valid_for: float | None, days: int
) -> None:
    rules = dataclasses.replace(RULES, valid_for=valid_for)
    assert decide(expiring(ODD, NOW + end, odd_age=age), rules, account=ODD).valid_until == NOW + timedelta(days=days)


def test_an_expired_account_is_taken_first_and_needs_no_force() -> None:
    plan = decide(expiring(EVEN, NOW - timedelta(days=1), even=REFUSED, even_age=3000.0, odd_age=5000.0), RULES)
    assert (plan.action, plan.parity, plan.objections) == (Action.ROTATE, EVEN, ())


def test_while_the_other_account_is_expired_the_advice_is_to_rotate_that_one() -> None:
    found = expiring(EVEN, NOW - timedelta(days=1), even=REFUSED)
    [objection] = decide(found, RULES, account=ODD).objections
    assert objection.gate is Gate.OTHER_REFUSED
    assert "VALID UNTIL of 'app_even' passed at 2025-02-28 12:00:00 UTC" in objection.text
    assert objection.text.endswith("--account even")


def test_an_account_that_is_no_role_is_named_as_such() -> None:
    found = dataclasses.replace(facts(odd=REFUSED), absent=frozenset({ODD}))
    [objection] = decide(found, RULES, account=ODD).objections
    assert objection.gate is Gate.MISMATCH
    assert "the role 'app_odd' does not exist" in objection.text
