"""Credentials: what is refused is named by its key, and no password is ever shown."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import aiopqr
from aiopqr.credentials import Credential, CredentialPair, Endpoint, Parity, Secret
from aiopqr.errors import InvalidSecret

PACKAGE = os.path.dirname(aiopqr.__file__) + os.sep  # not by name, since a checkout may be called aiopqr, too
CANARY = "canary-7f3a"
WHOLE = {
    "odd_username": "app_odd",
    "odd_password": f"{CANARY}-odd",
    "even_username": "app_even",
    "even_password": f"{CANARY}-even",
    "active_credential": "even",
}
MISSING: Any = object()


def secret(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**WHOLE, **changes}.items() if value is not MISSING}


def whole_text(exc: BaseException) -> str:
    """Everything a traceback can show: texts, reprs, causes, and the locals of each frame within the package."""
    texts = []
    while exc:
        locals_ = traceback.TracebackException.from_exception(exc, capture_locals=True)
        texts += [str(exc), repr(exc), repr(exc.args), *(repr(vars(exc)),)]
        texts += [repr(frame.locals) for frame in locals_.stack if frame.filename.startswith(PACKAGE)]
        exc = exc.__cause__ or exc.__context__  # type: ignore[assignment]
    return "\n".join(texts)


# A pair from a secret.


FORMS = [
    dict,
    MappingProxyType,
    json.dumps,
    lambda entries: json.dumps(entries).encode(),
    lambda entries: "\ufeff" + json.dumps(entries),  # an editor's byte order mark
    lambda entries: json.dumps(entries).encode("utf-8-sig"),
]


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_is_read_from_a_mapping_text_or_bytes(form: Callable[[Any], Any]) -> None:
    pair = CredentialPair.from_secret(form(WHOLE))
    assert pair == CredentialPair(
        Credential("app_odd", f"{CANARY}-odd"), Credential("app_even", f"{CANARY}-even"), active=Parity.EVEN
    )


def test_other_keys_are_ignored_and_the_endpoint_is_read() -> None:
    pair = CredentialPair.from_secret(secret(host="db.internal", port="5433", dbname="orders", engine="postgres"))
    assert pair.endpoint == Endpoint("db.internal", 5433, "orders")
    assert pair == CredentialPair.from_secret(WHOLE), "where the database is makes no other pair"


@pytest.mark.parametrize("key", ["host", "port", "dbname"])
def test_an_empty_place_is_as_good_as_none(key: str) -> None:
    place = {"host": "db", "port": 5433, "dbname": "orders"}
    assert CredentialPair.from_secret(secret(**{**place, key: ""})).endpoint == (
        CredentialPair.from_secret(secret(**{**place, key: MISSING})).endpoint
    )
    assert CredentialPair.from_secret(secret(**{key: ""})).endpoint is None


@pytest.mark.parametrize("absent", ["odd", "even"])
def test_an_account_of_which_both_keys_are_absent_makes_a_degraded_pair(absent: str) -> None:
    gone = {f"{absent}_username": MISSING, f"{absent}_password": MISSING}
    for active in (MISSING, "odd", "even"):
        pair = CredentialPair.from_secret(secret(**gone, active_credential=active))
        assert pair.missing is Parity(absent)
        assert pair.active is Parity(absent).other
        assert len(list(pair.credentials())) == 1


def test_a_pending_password_belongs_to_the_account_of_its_name_or_to_the_missing_one() -> None:
    pending = {"pending_username": "app_even", "pending_password": "newer"}
    assert CredentialPair.from_secret(secret(**pending)).pending_parity is Parity.EVEN
    odd_only = secret(even_username=MISSING, even_password=MISSING, **pending)
    assert CredentialPair.from_secret(odd_only).pending_parity is Parity.EVEN
    assert CredentialPair.from_secret(WHOLE).pending_parity is None


def test_a_single_account_is_read_from_username_or_user_and_password() -> None:
    plain = {"username": "app", "password": CANARY, "host": "db", "port": "5432", "dbname": "app"}
    cloudnativepg = {**plain, "user": "app", "uri": "postgresql://app:other@db/app", "pgpass": "db:5432:app:app:other"}
    expected = CredentialPair.single(Credential("app", CANARY))
    for entries in (plain, cloudnativepg, {"user": "app", "password": CANARY}):
        assert CredentialPair.from_secret(entries) == expected
    assert CredentialPair.from_secret(cloudnativepg).endpoint == Endpoint("db", 5432, "app")
    assert CredentialPair.from_secret({**plain, "dbname": "*"}).endpoint == Endpoint("db", 5432, None)


def test_a_single_account_lacks_nothing_and_may_have_a_pending_password() -> None:
    single = CredentialPair.single(Credential("app", "1"))
    assert single.is_single
    assert single.missing is None
    assert CredentialPair(Credential("app", "1"), None).missing is Parity.EVEN
    staged = {"username": "app", "password": "1", "pending_username": "app", "pending_password": "2"}
    assert CredentialPair.from_secret(staged).pending_parity is Parity.ODD
    with pytest.raises(InvalidSecret, match="a single account is one"):
        CredentialPair(Credential("a", "1"), Credential("b", "2"), is_single=True)


def test_the_keys_of_a_pair_win_over_those_of_a_single_account() -> None:
    assert CredentialPair.from_secret(secret(username="app", password="x")) == CredentialPair.from_secret(WHOLE)


def test_when_a_credential_expires_makes_no_other_credential() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    expiring = Credential("app", "1", expires_at=noon, ends_sessions=True)
    assert expiring == Credential("app", "1")
    assert hash(expiring) == hash(Credential("app", "1"))
    assert (expiring.expires_at, expiring.ends_sessions) == (noon, True)
    for bad in (noon.replace(tzinfo=None), "tomorrow", 12.0):
        with pytest.raises(InvalidSecret, match="expires_at must be an aware datetime"):
            Credential("app", CANARY, expires_at=bad)  # type: ignore[arg-type]


BAD: list[tuple[Any, str]] = [
    *((secret(**{key: MISSING}), f"{key} is missing") for key in WHOLE),
    *((secret(**{key: None}), f"{key} is missing") for key in WHOLE if key != "active_credential"),
    *((secret(**{key: ""}), f"{key} must not be empty") for key in WHOLE if key != "active_credential"),
    *((secret(**{key: 7}), f"{key} must be text, not int") for key in WHOLE if key != "active_credential"),
    *((secret(**{key: [CANARY]}), f"{key} must be text, not list") for key in WHOLE if key != "active_credential"),
    *((secret(**{key: f"{CANARY}\0"}), f"{key} must not contain a zero byte") for key in list(WHOLE)[:4]),
    *((secret(**{key: f"{CANARY}\ud800"}), f"{key} is not valid Unicode text") for key in list(WHOLE)[:4]),
    *((secret(active_credential=bad), "active_credential") for bad in ("Odd", "", "both", None, 1, [], {}, CANARY)),
    (secret(even_username="app_odd"), "odd_username and even_username must differ"),
    (secret(pending_username="app_odd"), "pending_password is missing"),
    (secret(pending_password=CANARY), "pending_username is missing"),
    (secret(pending_username="somebody", pending_password=CANARY), "pending_username"),
    (secret(host=7), "host must be text, not int"),
    (secret(dbname=[]), "dbname must be text, not list"),
    *((secret(port=bad), "port must be") for bad in (0, 65536, -1, "x", CANARY, True, 5432.5, [], 10**400)),
    *((secret(port=float(bad)), "port must be") for bad in ("inf", "-inf", "nan")),
    ({}, "expected odd_username, odd_password, even_username, even_password and active_credential, or username"),
    ({}, "found no keys"),
    ({"active_credential": "odd", "engine": CANARY}, "found active_credential, engine"),
    ({"User": CANARY, f"{CANARY} ": "", 7: CANARY}, "found User, 2 more"),
    ({f"key_{n}": CANARY for n in range(20)}, "key_11, 8 more"),
    ({"username": "app"}, "password is missing; found username"),
    ({"user": "app", "odd_password": CANARY}, "odd_username is missing; found user, odd_password"),
    ({"username": "app", "password": ""}, "password must not be empty"),
    *(
        (secret(**{key: f"{CANARY}\n"}), f"{key} must not end with white space (a line feed)")
        for key in list(WHOLE)[:4]
    ),
    *((secret(**{key: f"{CANARY}\r"}), f"{key} must not end with white space (a carriage") for key in list(WHOLE)[:4]),
    (secret(odd_password=f"\n{CANARY}"), "odd_password must not begin with white space (a line feed)"),
    (secret(even_username=f"{CANARY} "), "even_username must not end with white space (a space)"),
    (secret(even_username=f"\ufeff{CANARY}"), "even_username must not begin with white space (a byte order mark)"),
    (secret(even_username="app\neven"), "even_username must not contain a line feed"),
    (secret(active_credential="odd\n"), 'active_credential must be "odd" or "even", without white space around it'),
    (f"{CANARY} is no JSON", "not valid JSON"),
    (f'{{"odd_password": "{CANARY}"', "not valid JSON"),
    (b"\xff\xfe\xff" + CANARY.encode(), "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("", "not valid JSON"),
    (f'["{CANARY}"]', "must be a JSON object"),
    (f'"{CANARY}"', "must be a JSON object"),
    ("null", "must be a JSON object"),
    (None, "must be JSON text or a mapping, not NoneType"),
    ([CANARY], "must be JSON text or a mapping, not list"),
]


@pytest.mark.parametrize(("bad", "named"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_secret_is_refused_by_the_name_of_the_key_and_shows_no_value(bad: Any, named: str) -> None:
    with pytest.raises(InvalidSecret) as caught:
        CredentialPair.from_secret(bad)
    assert named in str(caught.value)
    assert CANARY not in whole_text(caught.value)


@pytest.mark.parametrize("key", ["odd", "even", "pending"])
def test_a_pair_of_anything_but_credentials_is_refused_by_the_name_of_the_key(key: str) -> None:
    accounts = {"odd": Credential("a", "x"), "even": Credential("b", "y"), key: ("a", CANARY)}
    with pytest.raises(InvalidSecret, match=f"{key} must be a Credential or None, not tuple"):
        CredentialPair(**accounts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("username", "password"), [("", CANARY), (7, CANARY), ("a", ""), ("a", 7), (None, CANARY)])
def test_a_credential_needs_a_name_and_a_password_that_are_text(username: Any, password: Any) -> None:
    with pytest.raises(InvalidSecret) as caught:
        Credential(username, password)
    assert CANARY not in whole_text(caught.value)


# A secret is not shown.


@given(st.text(min_size=8, alphabet="abcdefgh0123456789!@#$%^&äß字"))
def test_no_way_to_print_a_secret_shows_it(password: str) -> None:
    content = Secret(password)
    pair = CredentialPair(Credential("app_odd", content), None)
    for thing in (content, pair, pair.odd, [pair], {"secret": content}):
        shown = [repr(thing), str(thing), f"{thing}", f"{thing!r:>5}", "%s %r" % (thing, thing), ascii(thing)]  # noqa: UP031
        assert not any(password in text for text in shown)
    assert f"{content:>20}" == "**********".rjust(20)
    assert content.reveal() == password


def test_a_secret_cannot_be_pickled_but_copied() -> None:
    content = Secret(CANARY)
    for thing in (content, Credential("a", content), CredentialPair(Credential("a", content), None)):
        with pytest.raises(TypeError) as caught:
            pickle.dumps(thing)
        assert CANARY not in str(caught.value)
        assert copy.deepcopy(thing) == copy.copy(thing) == thing


def test_what_looks_at_the_attributes_of_a_secret_does_not_find_its_text() -> None:
    content = Secret(CANARY)
    for thing in (content, Credential("a", content), CredentialPair(Credential("a", content), None)):
        # Before Python 3.11.3 the __weakref__ of a dataclass with slots raises (python/cpython#102069).
        members = [getattr(thing, name) for name in dir(thing) if name != "__weakref__"]
        assert CANARY not in repr(members)
    with pytest.raises(TypeError):
        content.__getstate__()


@given(st.text(), st.text())
def test_secrets_are_equal_when_their_contents_are(one: str, other: str) -> None:
    assert (Secret(one) == Secret(other)) == (one == other)
    assert hash(Secret(one)) == hash(Secret(one))
    assert (Secret(one).digest == Secret(other).digest) == (one == other)
    assert Secret(one) != one
    assert bool(Secret(one)) == bool(one)


def test_the_other_of_a_parity_is_the_other() -> None:
    assert (Parity.ODD.other, Parity.EVEN.other) == (Parity.EVEN, Parity.ODD)


@given(
    st.dictionaries(
        st.sampled_from([*WHOLE, "pending_username", "pending_password", "host", "port", "dbname", "engine"]),
        st.one_of(st.text(max_size=5), st.none(), st.integers(), st.sampled_from(["odd", "even", "app_odd", CANARY])),
    )
)
def test_whatever_a_secret_holds_it_is_a_valid_pair_or_refused_as_one(entries: dict[str, Any]) -> None:
    problem, pair = "", None
    try:
        pair = CredentialPair.from_secret(entries)
    except InvalidSecret as exc:
        problem = str(exc)
    assert (pair is None) == bool(problem)
    assert CANARY not in problem
    if pair:
        assert pair[pair.active] is not None
        names = [c.username for c in (pair.odd, pair.even) if c]
        assert len(set(names)) == len(names) >= 1
        assert all(c.username and c.password for c in pair.credentials())


@pytest.mark.parametrize("value", ["60", math.nan, timedelta(seconds=60)])
def test_refresh_in_must_be_a_number_of_seconds(value: Any) -> None:
    with pytest.raises(InvalidSecret, match="refresh_in must be a number of seconds, or None"):
        CredentialPair(Credential("a", "x"), None, refresh_in=value)


@pytest.mark.parametrize("value", ["2026-01-02T03:04:05+00:00", 5.0, datetime.now(UTC).replace(tzinfo=None)])
def test_pending_since_must_be_an_aware_datetime(value: Any) -> None:
    with pytest.raises(InvalidSecret, match="pending_since must be an aware datetime, or None"):
        CredentialPair(Credential("a", "x"), None, pending_since=value)


def test_a_secret_tells_when_its_pending_password_was_staged() -> None:
    entries = {
        "odd_username": "o", "odd_password": "1", "even_username": "e", "even_password": "2",
        "active_credential": "odd", "pending_username": "e", "pending_password": "3",
    }  # fmt: skip
    for text, hour in (("2026-01-02T03:04:05+00:00", 3), ("2026-01-02T03:04:05+02:00", 1)):
        pair = CredentialPair.from_secret({**entries, "pending_staged_at": text})
        assert pair.pending_since
        assert pair.pending_since.hour == hour
    for text in ("2026-01-02T03:04:05", "yesterday", "0001-01-01T00:00:00+23:00", 5):
        assert CredentialPair.from_secret({**entries, "pending_staged_at": text}).pending_since is None
    assert CredentialPair.from_secret({**entries, "pending_staged_at": "2026-01-02T03:04:05+00:00"}) == pair
