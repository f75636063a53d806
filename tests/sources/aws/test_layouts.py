"""Which pair the stages of a secret give, as tables. This needs no AWS."""

from __future__ import annotations

import itertools

import pytest

from aiopqr.credentials import Credential, CredentialPair, Endpoint, Parity
from aiopqr.errors import InvalidSecret
from aiopqr.sources.aws.layouts import Account, Stages, from_alternating, from_pair, from_two, parse


def account(username: str, password: str) -> Account:
    return Account(Credential(username, password))


def summary(pair: CredentialPair) -> tuple[str | None, str | None, str | None, str]:
    """odd, even and pending as name/password, and who is active."""

    def text(one: Credential | None) -> str | None:
        return f"{one.username}/{one.password.reveal()}" if one else None

    return text(pair.odd), text(pair.even), text(pair.pending), str(pair.active)


APP = {n: account("app", f"p{n}") for n in range(4)}
CLONE = {n: account("app_clone", f"c{n}") for n in range(4)}


@pytest.mark.parametrize(
    ("current", "previous", "pending", "expected"),
    [
        # AWS's own rotation, moment by moment.
        (APP[0], None, None, ("app/p0", None, None, "odd")),
        (APP[0], None, CLONE[1], ("app/p0", None, "app_clone/c1", "odd")),
        (CLONE[1], APP[0], None, ("app/p0", "app_clone/c1", None, "even")),
        (CLONE[1], APP[0], APP[2], ("app/p0", "app_clone/c1", "app/p2", "even")),
        (APP[2], CLONE[1], None, ("app/p2", "app_clone/c1", None, "odd")),
        (APP[2], CLONE[1], CLONE[3], ("app/p2", "app_clone/c1", "app_clone/c3", "odd")),
        # A value written by hand, or AWS's rotation of a single user: the same account twice.
        (APP[2], APP[1], None, ("app/p2", None, "app/p1", "odd")),
        (CLONE[2], CLONE[1], None, (None, "app_clone/c2", "app_clone/c1", "even")),
        (APP[2], APP[1], APP[3], ("app/p2", None, "app/p3", "odd")),
        (APP[2], APP[1], CLONE[3], ("app/p2", "app_clone/c3", "app/p1", "odd")),
        # An AWSPENDING that is not new, or belongs to somebody else.
        (CLONE[1], APP[0], CLONE[1], ("app/p0", "app_clone/c1", None, "even")),
        (CLONE[1], APP[0], account("other", "x"), ("app/p0", "app_clone/c1", None, "even")),
        # A clone that is alone keeps its parity.
        (CLONE[1], None, None, (None, "app_clone/c1", None, "even")),
        # Names from other rotations: parity is still by name, whichever is current.
        (account("b", "1"), account("a", "2"), None, ("a/2", "b/1", None, "even")),
        (account("a", "1"), account("b", "2"), None, ("a/1", "b/2", None, "odd")),
    ],
)
def test_alternating_users_by_name(
    current: Account, previous: Account | None, pending: Account | None, expected: tuple[str | None, ...]
) -> None:
    assert summary(from_alternating(Stages(current, previous, pending))) == expected


@pytest.mark.parametrize("users", list(itertools.product(["app", "app_clone"], ["app", "app_clone", None])))
@pytest.mark.parametrize("pending_user", ["app", "app_clone", None])
def test_every_published_credential_of_alternating_users_is_tried(
    users: tuple[str, str | None], pending_user: str | None
) -> None:
    """Whichever of the stages' passwords the database accepts, the pair contains it."""
    stages = [Account(Credential(user, str(n))) if user else None for n, user in enumerate((*users, pending_user))]
    assert stages[0] is not None
    found = set(from_alternating(Stages(stages[0], *stages[1:])).credentials())
    published = {stage.credential for stage in stages if stage}
    if len({stage.credential.username for stage in stages if stage}) == 1 and len(published) == 3:
        assert stages[1] is not None
        published.remove(stages[1].credential)  # a single user's third password has no place in a pair
    assert found == published


def pair(odd: str, even: str, active: str = "odd") -> CredentialPair:
    return CredentialPair(Credential("o", odd), Credential("e", even), active=Parity(active))


@pytest.mark.parametrize(
    ("pending", "expected"),
    [
        (None, None),
        (pair("1", "1"), None),
        (pair("2", "1"), "o/2"),
        (pair("1", "2"), "e/2"),
        (pair("2", "2"), "e/2"),  # the one whose turn it is
        (CredentialPair(Credential("x", "2"), Credential("y", "2")), None),
        (account("o", "2"), None),
    ],
)
def test_the_pending_password_of_a_pair_is_what_awspending_has_newer(
    pending: CredentialPair | Account | None, expected: str | None
) -> None:
    assert summary(from_pair(Stages(pair("1", "1"), pending=pending))) == ("o/1", "e/1", expected, "odd")


def test_the_previous_version_of_a_pair_says_nothing() -> None:
    assert from_pair(Stages(pair("2", "1"), previous=pair("1", "1"))) == pair("2", "1")


def test_two_secrets_are_odd_and_even_by_place() -> None:
    found = from_two(Stages(account("z", "1")), Stages(account("a", "2"), pending=account("a", "3")))
    assert summary(found) == ("z/1", "a/2", "a/3", "odd")


def test_one_of_two_secrets_alone_is_a_degraded_pair() -> None:
    assert summary(from_two(None, Stages(account("a", "2")))) == (None, "a/2", None, "even")


def test_two_secrets_of_the_same_account_are_refused() -> None:
    with pytest.raises(InvalidSecret, match="must differ"):
        from_two(Stages(account("a", "1")), Stages(account("a", "2")))


def test_a_secret_of_one_account_has_its_place_and_ignores_other_keys() -> None:
    secret = {"username": "app", "password": "p0", "host": "db", "port": "5432", "dbname": "x", "engine": "postgres"}
    assert parse({**secret, "masterarn": "arn:aws:..."}) == Account(Credential("app", "p0"), Endpoint("db", 5432, "x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hunter2", "not valid JSON"),
        ('["hunter2"]', "a JSON object"),
        ('{"user": "hunter2"}', "^password is missing; found user$"),
        ('{"owner": "hunter2"}', "expected odd_username.* or username and password; found owner$"),
        ('{"username": "hunter2"}', "^password is missing; found username$"),
        ('{"username": "", "password": "hunter2"}', "^username must not be empty$"),
        ('{"username": "a", "password": 7}', "^password must be text"),
        ('{"odd_username": "hunter2"}', "odd_password is missing"),
        ('{"username": "a", "password": "hunter2", "port": "hunter2"}', "^port must be"),
    ],
)
def test_a_secret_of_no_layout_is_refused_by_key_and_never_by_value(text: str, words: str) -> None:
    with pytest.raises(InvalidSecret, match=words) as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)
    frames = caught.value.__traceback__
    while frames:
        if frames.tb_frame.f_code.co_filename.endswith("aws/layouts.py"):
            assert "hunter2" not in str(frames.tb_frame.f_locals)
        frames = frames.tb_next


@pytest.mark.parametrize(
    ("compose", "current"),
    [(from_pair, APP[0]), (from_alternating, pair("1", "1")), (lambda s: from_two(s, None), pair("1", "1"))],
)
def test_a_layout_that_the_secret_does_not_have_is_refused(compose: object, current: Account | CredentialPair) -> None:
    with pytest.raises(InvalidSecret, match="needs the keys"):
        compose(Stages(current))  # type: ignore[operator]
