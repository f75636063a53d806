"""New passwords: strong, and accepted alike by every client."""

from __future__ import annotations

import string

import pytest

from aiopqr.errors import ConfigurationError
from aiopqr.rotation.passwords import PasswordRule


def test_a_password_is_safe_in_a_url_by_default_and_never_the_same() -> None:
    made = {PasswordRule().generate().reveal() for _ in range(100)}
    assert len(made) == 100
    assert all(len(password) == 32 and password.isascii() and password.isalnum() for password in made)


def test_length_and_alphabet_are_the_users() -> None:
    password = PasswordRule(length=100, alphabet="abc").generate().reveal()
    assert len(password) == 100
    assert set(password) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("length", "alphabet"),
    [(32, ""), (32, "a"), (13, string.ascii_letters), (32, "abcé"), (32, "ab c"), (32, "aab"), (0, "ab"), (32, "a\n")],
)
def test_a_weak_or_ambiguous_rule_is_refused(length: int, alphabet: str) -> None:
    with pytest.raises(ConfigurationError, match="password"):
        PasswordRule(length, alphabet)
