"""Credentials that expire: what the plan, the alternation and a refresher do about it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given

import aiopqr
from aiopqr._connect.account_choice import EXPIRED_PAUSE, Alternator, Wait
from aiopqr._refresh import feed_of
from aiopqr._refresh.expiry import Expiry
from aiopqr._refresh.plan import BACKOFF_FIRST, URGENT_MAX, Need, RefreshPlan
from aiopqr._refresh.quarantine import Attempt
from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.refusals import Verdict
from aiopqr.testing import ScriptedSource

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = 1000.0


def token(text: str, seconds: float, *, ends_sessions: bool = False, username: str = "app") -> Credential:
    return Credential(username, text, expires_at=NOON + timedelta(seconds=seconds), ends_sessions=ends_sessions)


def alternator(pair: CredentialPair) -> Alternator:
    expiry = Expiry()
    expiry.update(pair, NOW, NOON)
    return Alternator(pair, expiry=expiry)


# Until when.


def test_an_expiry_is_turned_into_loop_time_when_it_is_fetched() -> None:
    expiry, one = Expiry(), token("1", 60)
    pair = CredentialPair.single(one)
    expiry.update(pair, NOW, NOON)
    assert expiry.at(one) == NOW + 60
    expiry.update(pair, NOW + 10, NOON + timedelta(hours=1))  # somebody has set the clock
    assert expiry.at(one) == NOW + 60
    expiry.update(CredentialPair.single(token("1", 120)), NOW + 10, NOON + timedelta(seconds=10))
    assert expiry.at(one) == NOW + 120, "the same password for longer"
    assert expiry.at(Credential("app", "other")) == math.inf


def test_what_expired_long_ago_is_forgotten() -> None:
    expiry = Expiry()
    for n in range(100):
        expiry.update(
            CredentialPair.single(token(str(n), n * 900 + 900)), NOW + n * 900, NOON + timedelta(seconds=n * 900)
        )
    assert len(expiry._known) < 10


@given(st.lists(st.tuples(st.sampled_from([1.0, 900.0, 3000.0, 4000.0]), st.integers(0, 3)), max_size=20))
def test_what_the_store_still_shows_stays_expired(steps: list[tuple[float, int]]) -> None:
    expiry, shown = Expiry(), [token(str(n), n * 3000) for n in range(4)]
    passed = 0.0
    for seconds, n in steps:
        passed += seconds
        expiry.update(CredentialPair.single(shown[n]), NOW + passed, NOON + timedelta(seconds=passed))
        assert expiry.at(shown[n]) == NOW + n * 3000


# When to fetch.


@given(st.floats(0.0, 1.0), st.sampled_from([0.0, 60.0, 1e6]), st.floats(2.0, 1e5))
def test_credentials_that_expire_are_fetched_when_two_thirds_of_their_time_have_passed(
    share: float, interval: float, remaining: float
) -> None:
    plan = RefreshPlan(interval, NOW, uniform=lambda low, high: low + share * (high - low))
    ticket = plan.start(NOW)
    assert ticket
    plan.succeeded(ticket, Need.NONE, NOW, remaining=remaining)
    assert plan.due - NOW <= 0.7 * remaining + 1e-6
    assert plan.due - NOW >= min(0.5 * remaining, BACKOFF_FIRST, 0.8 * interval or math.inf) - 1e-6


def test_failures_before_an_expiry_leave_time_for_several_tries() -> None:
    plan = RefreshPlan(0.0, NOW, uniform=lambda _, high: high)
    ticket = plan.start(NOW)
    assert ticket
    plan.succeeded(ticket, Need.NONE, NOW, remaining=900.0)
    tries = []
    while plan.due < NOW + 900:
        tries.append(now := plan.due)
        ticket = plan.start(now)
        assert ticket
        plan.failed(ticket, Need.NONE, now)
    assert len(tries) > 12
    assert tries[-1] >= NOW + 900 - URGENT_MAX - 1


# Which account.


def test_an_expired_credential_makes_no_login() -> None:
    a = alternator(CredentialPair.single(token("1", 60)))
    attempt = a.begin(NOW + 59)
    assert isinstance(attempt, Attempt)
    assert not a.is_refused(NOW + 59)
    assert a.begin(NOW + 60) == Wait(NOW + 60 + EXPIRED_PAUSE)
    assert a.is_refused(NOW + 60)
    assert a.has_expired(NOW + 60)
    assert not a.is_worthwhile(attempt, NOW + 60), "one that had to wait, for example for the server to come back"


def test_an_expired_credential_is_not_probed_either() -> None:
    a = alternator(CredentialPair(token("1", 60), Credential("other", "x")))
    first = a.begin(NOW)
    assert isinstance(first, Attempt)
    a.rejected(first, Verdict.CREDENTIAL, NOW)
    assert a.probe(NOW + 10_000) is None


def test_while_one_account_has_expired_the_other_one_serves() -> None:
    a = alternator(CredentialPair(token("1", 60), Credential("other", "x")))
    for _ in range(4):
        attempt = a.begin(NOW + 61)
        assert isinstance(attempt, Attempt)
        assert attempt.parity is Parity.EVEN
        assert a.fallback(attempt, NOW + 61) is None


def test_a_newer_password_of_an_account_that_expires_is_a_renewal_and_no_rotation() -> None:
    a = alternator(CredentialPair.single(token("1", 60)))
    attempt = a.begin(NOW)
    assert isinstance(attempt, Attempt)
    a.replace(CredentialPair.single(token("2", 120)))
    assert not a.is_superseded(attempt, NOW)
    assert not a.is_worthwhile(attempt, NOW), "though a new login is made with the newer one"
    a.replace(CredentialPair.single(Credential("app", "3")))
    assert a.is_superseded(attempt, NOW), "without an expiry it is a rotation"
    assert not a.has_left(attempt)
    a.replace(CredentialPair.single(token("4", 60, username="app2")))
    assert a.is_superseded(attempt, NOW)
    assert a.has_left(attempt)


def test_only_a_lease_ends_sessions_and_a_renewed_one_later() -> None:
    a = alternator(CredentialPair.single(token("1", 60)))
    attempt = a.begin(NOW)
    assert isinstance(attempt, Attempt)
    assert a.ends_at(attempt) == math.inf
    a = alternator(CredentialPair.single(token("1", 60, ends_sessions=True)))
    attempt = a.begin(NOW)
    assert isinstance(attempt, Attempt)
    assert a.ends_at(attempt) == NOW + 60
    renewed = CredentialPair.single(token("1", 90, ends_sessions=True))
    a.expiry.update(renewed, NOW + 30, NOON + timedelta(seconds=30))
    a.replace(renewed)
    assert a.ends_at(attempt) == NOW + 90
    a.replace(CredentialPair.single(token("2", 500, ends_sessions=True, username="another")))
    assert a.ends_at(attempt) == NOW + 90, "of an account that has left, what was known last"


# A refresher.


def lasting(seconds: float, text: str = "t") -> CredentialPair:
    return CredentialPair.single(Credential("app", text, expires_at=datetime.now(UTC) + timedelta(seconds=seconds)))


async def test_a_refresher_renews_before_the_expiry_without_an_interval() -> None:
    source = ScriptedSource(lasting(1.5, "1"), interval=0)
    async with aiopqr.Refresher(source) as refresher:
        source.pair = lasting(1000, "2")
        await asyncio.wait_for(source.wait_fetched(2), 10)
        async with asyncio.timeout(10):
            while refresher.pair != source.pair:
                await asyncio.sleep(0.01)


async def test_an_expired_account_counts_as_one_that_needs_newer_credentials() -> None:
    source = ScriptedSource(lasting(-5), interval=0)
    async with aiopqr.Refresher(source):
        await asyncio.wait_for(source.wait_fetched(3), 10)


async def test_an_account_that_expired_hours_ago_is_fetched_again_and_again() -> None:
    source = ScriptedSource(lasting(-7200), interval=0)
    async with aiopqr.Refresher(source):
        await asyncio.wait_for(source.wait_fetched(4), 10)


async def test_a_longer_expiry_of_the_same_password_reaches_those_who_wait_for_it() -> None:
    source = ScriptedSource(lasting(-5))
    async with aiopqr.Refresher(source, interval=0.2) as refresher:
        changed = asyncio.create_task(feed_of(refresher).wait_changed())
        await asyncio.sleep(0)
        source.pair = replace(lasting(1000))
        await asyncio.wait_for(changed, 10)
        assert feed_of(refresher).expiry.at(Credential("app", "t")) > asyncio.get_running_loop().time() + 900


async def test_without_a_usable_credential_a_connect_says_that_they_have_expired() -> None:
    async with aiopqr.Connector("postgresql://127.0.0.1:1/none", credentials=ScriptedSource(lasting(-5))) as connector:
        with pytest.raises(aiopqr.CredentialsExpired, match=r"app \d+ s ago.*why it does not renew them") as caught:
            await connector.connect(timeout=0.3)
        assert isinstance(caught.value, aiopqr.CredentialsRefused)
        account = connector.stats().accounts[Parity.ODD]
        assert account.expires_in
        assert account.expires_in < -5
        assert connector.stats().all_refused
