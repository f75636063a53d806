"""The defects of gopqr, the Go driver that had the idea first, as far as they can be stated without a server.

Each test has the number of the defect in our list; those that need a server are with the layers that do.
"""

from __future__ import annotations

import errno
import inspect
import json
import re
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

import aiopqr
from aiopqr import options
from aiopqr._connect.account_choice import Alternator, Wait
from aiopqr._refresh.plan import Need, RefreshPlan
from aiopqr._refresh.quarantine import Attempt, Quarantine
from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.errors import ConfigurationError, InvalidSecret
from aiopqr.events import Emitter, Event, ServerUnavailable
from aiopqr.refusals import Verdict, classify
from aiopqr.sources import as_source

ODD, EVEN = Credential("app_odd", "o1"), Credential("app_even", "e1")
PAIR = CredentialPair(ODD, EVEN)
AWKWARD = "@:/?#%&'\"\\ é" + "x" * 200


def begin(alternator: Alternator, now: float = 0.0) -> Attempt:
    attempt = alternator.begin(now)
    assert isinstance(attempt, Attempt)
    return attempt


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(errno.ECONNREFUSED, "no"), ssl.SSLError(1, "no"), EOFError(), ValueError()]
)
def test_gopqr_01_an_error_that_is_not_the_servers_is_judged_like_any_other(error: Exception) -> None:
    assert classify(error) in (Verdict.OUTAGE, Verdict.FATAL)


def test_gopqr_02_a_name_is_never_paired_with_the_password_of_another_version() -> None:
    alternator, valid = Alternator(PAIR), {ODD, EVEN}
    for serial in range(50):
        assert begin(alternator).credential in valid
        newer = Credential("app_odd", f"o{serial}"), Credential("app_even", f"e{serial}")
        valid |= set(newer)
        alternator.replace(CredentialPair(*newer))
        assert begin(alternator).credential in newer


def test_gopqr_03_connects_that_begin_together_take_different_accounts() -> None:
    alternator = Alternator(PAIR)
    taken = [begin(alternator).parity for _ in range(10)]
    assert taken.count(Parity.ODD) == taken.count(Parity.EVEN) == 5


def test_gopqr_04_a_fallback_is_never_the_account_that_was_refused() -> None:
    alternator = Alternator(PAIR)
    refused = begin(alternator)
    for others in range(4):
        second = alternator.fallback(refused, 0.0)
        assert second
        assert second.parity is refused.parity.other, f"after {others} others began"
        begin(alternator)


def test_gopqr_05_a_failing_account_leads_once_and_not_every_second_connect() -> None:
    alternator = Alternator(PAIR)
    for _ in range(20):
        first = begin(alternator)
        if first.parity is Parity.ODD:
            alternator.rejected(first, Verdict.CREDENTIAL, 0.0)
            second = alternator.fallback(first, 0.0)
            assert second
            alternator.accepted(second, 0.0)
    assert begin(alternator).parity is begin(alternator).parity is Parity.EVEN


def test_gopqr_06_a_hundred_failures_cause_one_fetch_and_one_more_at_most() -> None:
    plan, fetches = RefreshPlan(60.0, 0.0), 0
    ticket = plan.start(0.0)
    for _ in range(100):
        plan.request(Need.REFUSED, 0.0)
        fetches += plan.start(0.0) is not None
    assert fetches == 0
    assert ticket
    plan.succeeded(ticket, Need.NONE, 1.0)
    for now in range(1, 40):
        fetches += plan.start(now) is not None
    assert fetches == 1


def test_gopqr_07_no_source_of_credentials_is_told_when_the_pool_is_made() -> None:
    with pytest.raises(ConfigurationError, match="credentials must be a source"):
        as_source(None)  # type: ignore[arg-type]


def test_gopqr_08_both_refused_a_connect_waits_and_goes_on_with_what_a_refresh_brought() -> None:
    alternator = Alternator(PAIR)
    first = begin(alternator)
    alternator.rejected(first, Verdict.CREDENTIAL, 0.0)
    second = alternator.fallback(first, 0.0)
    assert second
    alternator.rejected(second, Verdict.CREDENTIAL, 0.0)
    assert isinstance(alternator.begin(0.0), Wait)
    newer = Credential("app_even", "e2")
    alternator.replace(replace(PAIR, even=newer))
    assert begin(alternator).credential == newer


@pytest.mark.parametrize("state", ["3D000", "22023", "42704"])
def test_gopqr_09_an_error_that_no_account_is_to_blame_for_is_not_taken_for_a_refusal(state: str) -> None:
    assert classify(server_error(state, "InitPostgres")) is Verdict.FATAL
    assert classify(TimeoutError()) is Verdict.OUTAGE


def test_gopqr_10_a_dsn_that_cannot_be_parsed_is_told_when_it_is_given() -> None:
    with pytest.raises(ConfigurationError, match="dsn cannot be parsed"):
        options.check_connect_arguments(("postgresql://[half/db",), {})


def test_gopqr_11_a_password_is_passed_on_as_it_is_whatever_its_letters() -> None:
    entries = {"odd_username": AWKWARD, "odd_password": AWKWARD}
    pair = CredentialPair.from_secret(json.dumps(entries))
    assert pair.odd
    assert (pair.odd.username, pair.odd.password.reveal()) == (AWKWARD, AWKWARD)


@pytest.mark.parametrize("key", ["odd_username", "odd_password", "even_username", "even_password"])
def test_gopqr_12_an_empty_name_or_password_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(InvalidSecret, match=f"^{key} must not be empty"):
        CredentialPair.from_secret(secret(**{key: ""}))


@pytest.mark.parametrize("active", ["ODD", "Even", "", "0", None])
def test_gopqr_13_the_active_account_is_odd_or_even_and_nothing_else(active: Any) -> None:
    with pytest.raises(InvalidSecret, match='active_credential must be "odd" or "even"'):
        CredentialPair.from_secret(secret(active_credential=active))


def test_gopqr_14_a_refresh_does_not_reset_the_alternation() -> None:
    alternator = Alternator(PAIR)
    taken = []
    for serial in range(6):
        taken.append(begin(alternator).parity)
        alternator.replace(replace(PAIR, odd=Credential("app_odd", f"o{serial}"), active=Parity.ODD))
    assert taken == [Parity.ODD, Parity.EVEN] * 3


@pytest.mark.parametrize(
    ("state", "routine", "text", "verdict"),
    [
        ("28000", "ClientAuthentication", "pg_hba.conf rejects connection", Verdict.FATAL),
        ("08P01", None, "password authentication failed", Verdict.CREDENTIAL),
        ("42501", "CheckMyDatabase", "permission denied for database", Verdict.ACCOUNT),
        ("53300", "InitializeSessionUserId", "too many connections for role", Verdict.ACCOUNT_FULL),
    ],
)
def test_gopqr_16_what_blames_the_account_and_what_does_not_are_told_apart(
    state: str, routine: str | None, text: str, verdict: Verdict
) -> None:
    assert classify(server_error(state, routine, text)) is verdict


def test_gopqr_17_a_users_function_that_raises_stops_nobody() -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError

    emitter = Emitter([broken, heard.append])
    for _ in range(2):
        emitter.forward(ServerUnavailable(name="orders", error="down"))
    assert len(heard) == 2


@pytest.mark.parametrize("documented", [aiopqr.create_pool, aiopqr.Connector, aiopqr.Refresher])
def test_gopqr_18_no_parameter_is_documented_that_does_not_exist(documented: Callable[..., Any]) -> None:
    paragraphs = re.findall(r"^- (``\w+``(?:, ``\w+``)*):", inspect.getdoc(documented) or "", re.MULTILINE)
    named = {name for paragraph in paragraphs for name in re.findall(r"\w+", paragraph)}
    assert named <= set(inspect.signature(documented).parameters)
    assert named or documented is not aiopqr.create_pool
    assert all(hasattr(aiopqr, name) for name in aiopqr.__all__)


def test_gopqr_19_alternators_have_nothing_in_common_but_what_they_are_given() -> None:
    one, other = Alternator(PAIR), Alternator(CredentialPair(Credential("b_odd", "x"), Credential("b_even", "y")))
    one.rejected(begin(one), Verdict.CREDENTIAL, 0.0)
    assert {begin(other).parity for _ in range(2)} == set(Parity)
    assert other.pair.odd
    assert other.pair.odd.username == "b_odd"
    assert Alternator(PAIR).refused is not Alternator(PAIR).refused
    shared = Quarantine()
    assert Alternator(PAIR, shared).refused is Alternator(PAIR, shared).refused


def test_gopqr_20_printing_a_pair_shows_no_password() -> None:
    pair = CredentialPair(Credential("app_odd", "canary-odd"), Credential("app_even", "canary-even"))
    assert "app_odd" in f"{pair}"
    assert not re.search("canary", f"{pair} {pair!r} {pair.odd} {begin(Alternator(pair))}")


def server_error(state: str, routine: str | None, text: str = "no") -> asyncpg.PostgresError:
    error: asyncpg.PostgresError = asyncpg.PostgresError.new(
        {"S": "FATAL", "C": state, "M": text, **({"R": routine} if routine else {})}
    )
    return error


def secret(**changes: Any) -> dict[str, Any]:
    return {
        "odd_username": "app_odd",
        "odd_password": "o1",
        "even_username": "app_even",
        "even_password": "e1",
        "active_credential": "odd",
        **changes,
    }
