"""Which account a connect uses: the promises of the quarantine and of the alternator, one by one, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from aiopqr._connect.account_choice import FULL_PAUSE, Alternator, Wait
from aiopqr._refresh.announcement import STEP_ASIDE_MAX
from aiopqr._refresh.quarantine import PROBE_FIRST, PROBE_MAX, Attempt, Quarantine
from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.refusals import Verdict

ODD, EVEN = Credential("app_odd", "odd-1"), Credential("app_even", "even-1")
PAIR = CredentialPair(ODD, EVEN, active=Parity.EVEN)
REFUSED = Verdict.CREDENTIAL


def exact(low: float, high: float) -> float:
    return (low + high) / 2


def alternator(pair: CredentialPair = PAIR, shared: Quarantine | None = None) -> Alternator:
    return Alternator(pair, shared or Quarantine(exact), _local=Quarantine(exact))


def begin(alternator: Alternator, now: float) -> Attempt:
    attempt = alternator.begin(now)
    assert isinstance(attempt, Attempt)
    return attempt


def refuse_both(alternator: Alternator, now: float, verdict: Verdict = REFUSED) -> None:
    first = begin(alternator, now)
    alternator.rejected(first, verdict, now)
    second = alternator.fallback(first, now)
    assert second
    alternator.rejected(second, verdict, now)


# The alternation.


@given(st.integers(1, 40), st.sampled_from(Parity))
def test_accounts_take_turns_and_the_first_is_the_active_one(connects: int, active: Parity) -> None:
    a = alternator(replace(PAIR, active=active))
    taken = [begin(a, 0.0).parity for _ in range(connects)]
    assert taken == [active if turn % 2 == 0 else active.other for turn in range(connects)]


def test_a_newer_pair_does_not_reset_the_alternation() -> None:
    a = alternator()
    taken = []
    for turn in range(6):
        taken.append(begin(a, 0.0).parity)
        a.replace(CredentialPair(Credential("app_odd", f"odd-{turn}"), EVEN, active=Parity.EVEN))
    assert taken == [Parity.EVEN, Parity.ODD] * 3


def test_the_fallback_is_the_other_account_than_this_attempts_whatever_others_took_meanwhile() -> None:
    a = alternator()
    attempts = [begin(a, 0.0) for _ in range(5)]
    for attempt in attempts:
        second = a.fallback(attempt, 0.0)
        assert second
        assert second.parity is attempt.parity.other


def test_a_refused_account_is_passed_over() -> None:
    a = alternator()
    first = begin(a, 0.0)
    assert a.rejected(first, REFUSED, 0.0)
    assert {begin(a, 1.0).parity for _ in range(5)} == {first.parity.other}
    assert a.fallback(begin(a, 1.0), 1.0) is None


def test_a_degraded_pair_uses_the_account_it_has_and_has_no_fallback() -> None:
    a = alternator(CredentialPair(None, EVEN))
    attempts = [begin(a, 0.0) for _ in range(3)]
    assert {attempt.credential for attempt in attempts} == {EVEN}
    assert a.fallback(attempts[0], 0.0) is None


def test_a_store_that_swaps_the_accounts_does_not_make_a_refused_login_its_own_fallback() -> None:
    a = alternator()
    first = begin(a, 0.0)
    a.rejected(first, REFUSED, 0.0)
    a.replace(CredentialPair(odd=EVEN, even=ODD))
    assert a.fallback(first, 0.0) is None
    assert begin(a, 0.0).credential != first.credential


# What is set aside, and for how long.


def test_a_late_refusal_of_an_old_password_says_nothing_about_the_new_one() -> None:
    a = alternator()
    late = begin(a, 0.0)
    newer = Credential(late.credential.username, "newer")
    a.replace(replace(PAIR, even=newer))
    a.rejected(late, REFUSED, 1.0)
    assert a.refused_since(newer) is None
    assert {begin(a, 1.0).credential for _ in range(2)} == {ODD, newer}


def test_a_store_that_flips_back_to_a_refused_password_lifts_nothing() -> None:
    a = alternator()
    first = begin(a, 0.0)
    a.rejected(first, REFUSED, 0.0)
    a.replace(replace(PAIR, even=Credential("app_even", "newer")))
    a.replace(PAIR)
    assert begin(a, 1.0).parity is begin(a, 1.0).parity is first.parity.other


def test_a_late_refusal_does_not_overrule_a_login_that_began_later() -> None:
    a = alternator()
    early = begin(a, 0.0)
    begin(a, 0.0)
    later = begin(a, 1.0)
    a.accepted(later, 2.0)
    assert not a.rejected(early, REFUSED, 3.0)
    assert a.refused_since(EVEN) is None


def test_a_late_success_does_not_overrule_a_refusal_that_began_later() -> None:
    a = alternator()
    early = begin(a, 0.0)  # logged in, and then the password is changed
    begin(a, 0.0)
    later = begin(a, 1.0)
    a.rejected(later, REFUSED, 2.0)
    assert a.accepted(early, 3.0) is None
    assert a.refused_since(EVEN) == 2.0


def test_of_a_refusal_and_a_success_that_began_together_the_later_word_counts() -> None:
    for late in ("refused", "accepted"):
        a = alternator()
        one, _, two = begin(a, 0.0), begin(a, 0.0), begin(a, 0.0)
        if late == "refused":
            a.accepted(one, 1.0)
            a.rejected(two, REFUSED, 2.0)
        else:
            a.rejected(two, REFUSED, 1.0)
            a.accepted(one, 2.0)
        assert (a.refused_since(EVEN) is not None) == (late == "refused")


def test_a_refusal_counts_once_however_many_logins_were_in_flight() -> None:
    a = alternator(CredentialPair(None, EVEN))
    attempts = [begin(a, 0.0) for _ in range(5)]
    assert [a.rejected(attempt, REFUSED, 1.0 + n) for n, attempt in enumerate(attempts)] == [True] + [False] * 4
    assert a.retry_at(EVEN) == 1.0 + PROBE_FIRST


def test_a_login_that_was_put_off_is_not_worth_making_once_it_is_refused_or_superseded() -> None:
    a = alternator()
    waiting, _, other = begin(a, 0.0), begin(a, 0.0), begin(a, 0.0)
    assert a.is_worthwhile(waiting, 0.0)
    a.rejected(other, REFUSED, 1.0)
    assert not a.is_worthwhile(waiting, 0.0)
    b = alternator()
    waiting = begin(b, 0.0)
    b.replace(replace(PAIR, even=Credential("app_even", "newer")))
    assert not b.is_worthwhile(waiting, 0.0)


def test_a_pair_that_flips_back_makes_what_was_begun_with_it_current_again() -> None:
    a = alternator()
    attempt = begin(a, 0.0)
    a.replace(replace(PAIR, even=Credential("app_even", "newer")))
    assert a.is_superseded(attempt, 0.0)
    a.replace(PAIR)
    assert not a.is_superseded(attempt, 0.0)


def test_a_credential_that_goes_on_being_refused_is_not_forgotten_for_newer_ones() -> None:
    quarantine = Quarantine(exact)
    attempt = Attempt(Parity.ODD, ODD, 1, 0.0)
    quarantine.refuse(attempt, 0.0)
    for serial in range(200):
        other = Credential("app_even", f"even-{serial}")
        quarantine.refuse(Attempt(Parity.EVEN, other, 1, 0.0), 0.0)
        quarantine.refuse(replace(attempt, probe=True), 0.0)
    assert quarantine.since(ODD) == 0.0
    assert len(quarantine._refused) <= 64


# Probes.


def test_both_refused_no_login_is_made_before_the_first_probe() -> None:
    a = alternator()
    refuse_both(a, 0.0)
    assert a.is_refused(0.0)
    assert a.begin(PROBE_FIRST - 0.01) == Wait(PROBE_FIRST)
    attempt = begin(a, PROBE_FIRST)
    assert attempt.probe


def test_probes_come_one_at_a_time_at_doubling_intervals_up_to_ten_minutes() -> None:
    a = alternator(CredentialPair(ODD, None))
    a.rejected(begin(a, 0.0), REFUSED, 0.0)
    now, waits = 0.0, []
    for _ in range(7):
        wait = a.begin(now)
        assert isinstance(wait, Wait)
        waits.append(wait.until - now)
        now = wait.until
        probe = begin(a, now)
        assert probe.probe
        assert isinstance(a.begin(now), Wait)
        assert not a.rejected(probe, REFUSED, now)
    assert waits == [30, 60, 120, 240, 480, 600, 600]
    assert a.refused_since(ODD) == 0.0


@given(st.floats(0.0, 1.0), st.integers(0, 8))
def test_probes_are_jittered_by_a_fifth(share: float, refusals: int) -> None:
    quarantine = Quarantine(lambda low, high: low + share * (high - low))
    attempt = Attempt(Parity.ODD, ODD, 1, 0.0)
    quarantine.refuse(attempt, 0.0)
    for _ in range(refusals):
        quarantine.refuse(replace(attempt, probe=True), 0.0)
    delay = min(PROBE_FIRST * 2**refusals, PROBE_MAX)
    assert 0.8 * delay <= quarantine.retry_at(ODD) <= 1.2 * delay


def test_a_probe_that_is_let_in_lifts_what_was_set_aside_and_tells_for_how_long() -> None:
    a = alternator()
    refuse_both(a, 0.0)
    assert a.accepted(begin(a, PROBE_FIRST), PROBE_FIRST + 1) == PROBE_FIRST + 1
    assert not a.is_refused(0.0)


def test_a_probe_that_told_nothing_is_for_the_next_to_make() -> None:
    a = alternator(CredentialPair(ODD, None))
    a.rejected(begin(a, 0.0), REFUSED, 0.0)
    a.abandoned(begin(a, PROBE_FIRST), PROBE_FIRST + 1)
    assert begin(a, PROBE_FIRST + 1).probe


def test_a_probe_that_told_nothing_does_not_hurry_what_another_probe_has_learned() -> None:
    a = alternator(CredentialPair(ODD, None))
    a.rejected(begin(a, 0.0), REFUSED, 0.0)
    stuck = begin(a, PROBE_FIRST)
    attempt = begin(a, 2 * PROBE_FIRST)
    a.rejected(attempt, REFUSED, 2 * PROBE_FIRST)
    a.abandoned(stuck, 2 * PROBE_FIRST + 1)
    assert a.begin(2 * PROBE_FIRST + 1) == Wait(4 * PROBE_FIRST)


def test_a_probe_in_the_background_takes_no_turn() -> None:
    a = alternator()
    a.rejected(begin(a, 0.0), REFUSED, 0.0)  # even
    probe = a.probe(PROBE_FIRST)
    assert probe
    assert probe.credential == EVEN
    assert a.probe(PROBE_FIRST) is None
    a.accepted(probe, PROBE_FIRST)
    assert [begin(a, PROBE_FIRST).parity for _ in range(3)] == [Parity.ODD, Parity.EVEN, Parity.ODD]


def test_alternators_that_share_a_quarantine_share_its_probes_and_what_they_learn() -> None:
    shared = Quarantine(exact)
    a, b = alternator(shared=shared), alternator(shared=shared)
    refuse_both(a, 0.0)
    assert b.is_refused(0.0)
    probe = begin(a, PROBE_FIRST)
    assert begin(b, PROBE_FIRST).credential != probe.credential
    assert isinstance(b.begin(PROBE_FIRST), Wait)
    a.accepted(probe, PROBE_FIRST)
    assert begin(b, PROBE_FIRST).credential == probe.credential


def test_an_account_that_may_not_connect_here_is_set_aside_here_only() -> None:
    shared = Quarantine(exact)
    a, b = alternator(shared=shared), alternator(shared=shared)
    assert a.rejected(begin(a, 0.0), Verdict.ACCOUNT, 0.0)
    assert {begin(a, 1.0).parity for _ in range(3)} == {Parity.ODD}
    assert {begin(b, 1.0).parity for _ in range(2)} == {Parity.ODD, Parity.EVEN}


# A full account.


def test_a_full_account_is_passed_over_for_a_while_and_not_refused() -> None:
    a = alternator()
    assert not a.rejected(begin(a, 0.0), Verdict.ACCOUNT_FULL, 0.0)
    assert {begin(a, FULL_PAUSE - 0.01).parity for _ in range(3)} == {Parity.ODD}
    assert a.refused_since(EVEN) is None
    assert {begin(a, FULL_PAUSE).parity for _ in range(2)} == {Parity.ODD, Parity.EVEN}


def test_both_accounts_full_connects_wait_for_the_first_that_may_have_room() -> None:
    a = alternator()
    first = begin(a, 0.0)
    a.rejected(first, Verdict.ACCOUNT_FULL, 0.0)
    second = a.fallback(first, 1.0)
    assert second
    a.rejected(second, Verdict.ACCOUNT_FULL, 1.0)
    assert a.begin(1.0) == Wait(FULL_PAUSE)
    assert not a.is_refused(0.0)


def test_a_probe_that_finds_the_account_full_is_not_repeated_at_once() -> None:
    a = alternator(CredentialPair(ODD, None))
    a.rejected(begin(a, 0.0), REFUSED, 0.0)
    a.rejected(begin(a, PROBE_FIRST), Verdict.ACCOUNT_FULL, PROBE_FIRST)
    assert a.begin(PROBE_FIRST) == Wait(PROBE_FIRST + FULL_PAUSE)
    assert begin(a, PROBE_FIRST + FULL_PAUSE).probe


# A pending password.


PENDING = Credential("app_odd", "odd-2")


def test_a_pending_password_is_tried_only_after_both_accounts_were_refused() -> None:
    a = alternator(replace(PAIR, pending=PENDING))
    assert PENDING not in {begin(a, 0.0).credential for _ in range(4)}
    a.rejected(begin(a, 0.0), REFUSED, 0.0)
    assert begin(a, 0.0).credential == ODD
    a.rejected(begin(a, 0.0), REFUSED, 0.0)
    attempt = begin(a, 0.0)
    assert (attempt.credential, attempt.parity, attempt.probe) == (PENDING, Parity.ODD, False)


def test_a_pending_password_that_was_refused_is_not_tried_again() -> None:
    a = alternator(replace(PAIR, pending=PENDING))
    refuse_both(a, 0.0)
    a.rejected(begin(a, 0.0), REFUSED, 0.0)
    assert a.begin(0.0) == Wait(PROBE_FIRST)


def test_a_pending_password_whose_turn_has_not_come_lets_nobody_wait_for_nothing() -> None:
    a = alternator(replace(PAIR, pending=PENDING))
    first = begin(a, 0.0)  # even
    a.rejected(first, Verdict.ACCOUNT_FULL, 0.0)
    second = a.fallback(first, 0.0)
    assert second
    a.rejected(second, REFUSED, 0.0)
    assert a.begin(1.0) == Wait(FULL_PAUSE)


def test_the_pending_password_of_a_degraded_pair_belongs_to_the_account_that_is_missing() -> None:
    a = alternator(CredentialPair(None, EVEN, pending=PENDING))
    a.rejected(begin(a, 0.0), REFUSED, 0.0)
    assert begin(a, 0.0).parity is Parity.ODD


@pytest.mark.parametrize("verdict", [Verdict.OUTAGE, Verdict.SERVER_FULL, Verdict.FATAL])
def test_what_does_not_blame_the_account_sets_nothing_aside(verdict: Verdict) -> None:
    a = alternator()
    assert not a.rejected(begin(a, 0.0), verdict, 0.0)
    assert {begin(a, 0.0).parity for _ in range(2)} == set(Parity)


# A staged password announces that its account is about to change.


def announced(now: float = 0.0) -> Alternator:
    a = alternator(replace(PAIR, pending=Credential("app_even", "even-2")))
    assert list(a.announcement.update(a.pair, now))
    return a


def test_while_a_stage_is_open_new_connections_use_the_other_account() -> None:
    a = announced()
    assert {begin(a, 1.0).parity for _ in range(5)} == {Parity.ODD}
    assert {begin(a, STEP_ASIDE_MAX).parity for _ in range(2)} == {Parity.ODD, Parity.EVEN}


def test_when_the_stage_is_closed_the_alternation_goes_on() -> None:
    a = announced()
    begin(a, 1.0)
    promoted = replace(PAIR, even=Credential("app_even", "even-2"))
    list(a.announcement.update(promoted, 2.0))
    a.replace(promoted)
    assert [begin(a, 3.0).parity for _ in range(4)] == [Parity.EVEN, Parity.ODD] * 2


def test_a_pool_that_steps_aside_uses_the_staged_account_when_the_other_is_refused() -> None:
    a = announced()
    first = begin(a, 1.0)
    a.rejected(first, REFUSED, 1.0)
    second = a.fallback(first, 1.0)
    assert second
    assert second.credential == EVEN
    assert {begin(a, 2.0).credential for _ in range(3)} == {EVEN}
    a.rejected(second, REFUSED, 3.0)
    last = begin(a, 3.0)
    assert last.credential == a.pair.pending


def test_a_pool_that_steps_aside_uses_the_staged_account_while_the_other_is_full() -> None:
    a = announced()
    a.rejected(begin(a, 1.0), Verdict.ACCOUNT_FULL, 1.0)
    assert {begin(a, 2.0).parity for _ in range(3)} == {Parity.EVEN}
    assert begin(a, 1.0 + FULL_PAUSE).parity is Parity.ODD


def test_an_account_that_is_about_to_change_is_not_probed_while_the_other_works() -> None:
    a = announced()
    a.rejected(Attempt(Parity.EVEN, EVEN, 1, 0.0), REFUSED, 0.0)
    assert a.probe(PROBE_FIRST) is None
    a.rejected(begin(a, PROBE_FIRST), Verdict.ACCOUNT_FULL, PROBE_FIRST)
    probe = a.probe(PROBE_FIRST)
    assert probe
    assert probe.parity is Parity.EVEN
