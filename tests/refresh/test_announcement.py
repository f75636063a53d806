"""A staged password announces a change: when that counts, for how long, and what is reported about it."""

from __future__ import annotations

from dataclasses import replace

from aiopqr._refresh.announcement import STEP_ASIDE_MAX, Announcement, Ended, Stage
from aiopqr.credentials import Credential, CredentialPair, Parity

PAIR = CredentialPair(Credential("app_odd", "odd-1"), Credential("app_even", "even-1"))
STAGED = replace(PAIR, pending=Credential("app_even", "even-2"))


def hear(announcement: Announcement, pair: CredentialPair, now: float, age: float = 0.0) -> list[str]:
    steps = announcement.update(pair, now, age)
    return [step.stage.parity + (" closed" if step.closed else " expired") if isinstance(step, Ended) else step.parity
            for step in steps]  # fmt: skip


def test_a_stage_is_avoided_from_when_it_is_seen_until_it_is_closed() -> None:
    a = Announcement()
    assert hear(a, PAIR, 0.0) == []
    assert a.avoided(0.0) is None
    assert hear(a, STAGED, 1.0) == ["even"]
    assert a.avoided(800.0) is Parity.EVEN
    assert hear(a, STAGED, 800.0) == []
    assert hear(a, PAIR, 801.0) == ["even closed"]
    assert a.avoided(801.0) is None
    assert hear(a, PAIR, 802.0) == []


def test_a_stage_that_stays_open_counts_for_a_quarter_of_an_hour_and_its_end_is_reported_once() -> None:
    a = Announcement()
    hear(a, STAGED, 100.0)
    end = 100.0 + STEP_ASIDE_MAX
    assert a.avoided(end - 0.1) is Parity.EVEN
    assert a.avoided(end) is None
    assert hear(a, STAGED, end) == ["even expired"]
    assert hear(a, STAGED, end + 1) == []
    assert hear(a, PAIR, end + 2) == []


def test_the_stores_time_of_staging_shortens_that_and_never_lengthens_it() -> None:
    for age, left in ((600.0, 300.0), (0.0, 900.0), (-600.0, 900.0)):
        a = Announcement()
        hear(a, STAGED, 0.0, age)
        assert a.avoided(left - 0.1) is Parity.EVEN
        assert a.avoided(left) is None


def test_a_stage_that_is_already_too_old_is_not_reported() -> None:
    a = Announcement()
    assert hear(a, STAGED, 0.0, age=1000.0) == []
    assert hear(a, PAIR, 1.0) == []


def test_another_stage_begins_anew() -> None:
    a = Announcement()
    hear(a, STAGED, 0.0)
    other = replace(PAIR, pending=Credential("app_odd", "odd-2"))
    assert hear(a, other, 10.0) == ["even closed", "odd"]
    assert a.stage == Stage(Parity.ODD, Credential("app_odd", "odd-2"), 10.0, 10.0 + STEP_ASIDE_MAX)
    again = replace(PAIR, pending=Credential("app_odd", "odd-3"))
    assert hear(a, again, 20.0) == ["odd closed", "odd"]


def test_a_pending_password_that_is_the_accounts_own_announces_nothing() -> None:
    assert hear(Announcement(), replace(PAIR, pending=PAIR.even), 0.0) == []


def test_a_degraded_pair_has_nothing_to_step_aside_to() -> None:
    for pair in (replace(STAGED, odd=None), replace(PAIR, even=None, pending=Credential("app_even", "even-2"))):
        assert hear(Announcement(), pair, 0.0) == []
