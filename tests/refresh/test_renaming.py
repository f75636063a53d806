"""A single-account store that begins to name another account, step by step."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from aiopqr._connect.account_choice import Alternator, Wait
from aiopqr._refresh.quarantine import Attempt
from aiopqr._refresh.renaming import Renaming
from aiopqr.credentials import Credential, CredentialPair
from aiopqr.refusals import Verdict


def single(username: str, password: str, **more: object) -> CredentialPair:
    return CredentialPair.single(Credential(username, password, **more))  # type: ignore[arg-type]


def shown(pair: CredentialPair) -> tuple[list[str], str | None]:
    accounts = [f"{c.username}/{c.password.reveal()}" for c in (pair.odd, pair.even) if c]
    return accounts, pair.last_resort and pair.last_resort.username


def test_a_store_that_flips_between_two_names_makes_a_pair_once_it_has_come_back() -> None:
    renaming = Renaming()
    steps = [(single("a", "1"), (["a/1"], None)),
             (single("b", "1"), (["b/1"], "a")), (single("b", "1"), (["b/1"], "a")),
             (single("a", "2"), (["a/2", "b/1"], None)), (single("b", "2"), (["a/2", "b/2"], None)),
             (single("b", "3"), (["a/2", "b/3"], None))]  # fmt: skip
    for pair, expected in steps:
        found = renaming.completed(pair)
        assert shown(found) == expected
        assert found.is_single is (len(expected[0]) == 1)
        assert found.missing is None
        active = found[found.active]
        assert active == pair.odd, "the first connection takes what the store names"


def test_a_move_away_from_an_account_keeps_it_as_a_last_resort_only() -> None:
    renaming = Renaming()
    renaming.completed(single("old", "1"))
    a = Alternator(renaming.completed(single("new", "1")))
    for _ in range(3):
        attempt = a.begin(0.0)
        assert isinstance(attempt, Attempt)
        assert attempt.credential.username == "new"
    assert a.fallback(attempt, 0.0) is None
    a.rejected(attempt, Verdict.CREDENTIAL, 0.0)
    last = a.begin(0.0)
    assert isinstance(last, Attempt)
    assert last.credential.username == "old"
    assert not a.is_superseded(last, 0.0), "it serves for as long as it is needed"
    assert not a.has_left(last)
    a.replace(renaming.completed(single("new", "2")))
    assert a.is_superseded(last, 0.0)
    a.rejected(last, Verdict.CREDENTIAL, 0.0)
    newer = a.begin(0.0)
    assert isinstance(newer, Attempt)
    a.rejected(newer, Verdict.CREDENTIAL, 0.0)
    assert isinstance(a.begin(0.0), Wait)


def test_the_account_before_serves_while_the_new_one_has_expired() -> None:
    new = Credential("new", "n", expires_at=datetime.now(UTC) + timedelta(seconds=5))
    a = Alternator(replace(CredentialPair.single(new), last_resort=Credential("old", "o")))
    a.expiry.update(a.pair, 0.0, datetime.now(UTC))
    last = a.begin(6.0)
    assert isinstance(last, Attempt)
    assert last.credential.username == "old"
    assert not a.is_superseded(last, 6.0), "nothing else works"
    assert a.is_superseded(last, 1.0)


def test_nothing_is_kept_where_the_account_ends_with_its_lease_or_the_user_says_so() -> None:
    lease = {"ends_sessions": True, "expires_at": datetime(2026, 1, 1, tzinfo=UTC)}
    for renaming, more in ((Renaming(), lease), (Renaming(keeps=False), {})):
        for name in ("a", "b", "a"):
            assert renaming.completed(single(name, "1", **more)).last_resort is None
    a = Alternator(single("a", "1"))
    attempt = a.begin(0.0)
    assert isinstance(attempt, Attempt)
    a.replace(single("b", "1"))
    assert a.has_left(attempt)


def test_a_pair_that_appears_ends_what_was_kept() -> None:
    renaming = Renaming()
    renaming.completed(single("a", "1"))
    whole = CredentialPair(Credential("a", "1"), Credential("b", "1"))
    assert renaming.completed(whole) == whole
    assert renaming.completed(single("b", "1")).last_resort is None


def test_what_the_store_says_besides_the_account_stays() -> None:
    renaming = Renaming()
    renaming.completed(single("a", "1"))
    found = renaming.completed(replace(single("b", "1"), refresh_in=7.0, pending=Credential("b", "2")))
    assert (found.refresh_in, found.pending) == (7.0, Credential("b", "2"))
