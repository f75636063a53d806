"""Options: an error names the wrong option, and a DSN is never shown."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from aiopqr import options
from aiopqr._pool import lifetime_option
from aiopqr.errors import ConfigurationError

CANARY = "canary-7f3a"
NO_SECONDS: list[Any] = [10**400, -1, -0.001, math.nan, math.inf, -math.inf, "1", None, True, False, [], 1j]


@pytest.mark.parametrize("bad", NO_SECONDS)
def test_a_number_of_seconds_is_finite_and_not_negative(bad: Any) -> None:
    for check in (options.non_negative, options.positive):
        with pytest.raises(ConfigurationError, match="max_lifetime must be a number of seconds"):
            check("max_lifetime", bad)


@given(st.floats(0, 1e9) | st.integers(0, 10**9))
def test_a_number_of_seconds_is_taken_as_a_float(value: float) -> None:
    taken = options.non_negative("check_after", value)
    assert type(taken) is float
    assert taken == value


def test_a_timeout_may_be_none_and_a_fetch_needs_more_than_none_at_all() -> None:
    assert options.optional_timeout("acquire_timeout", None) is None
    assert options.optional_timeout("acquire_timeout", 0) == 0.0
    with pytest.raises(ConfigurationError, match="fetch_timeout must be more than 0"):
        options.positive("fetch_timeout", 0)


@pytest.mark.parametrize("bad", [-1, 1.0, "1", True, math.nan])
def test_a_count_is_a_whole_number_or_none(bad: Any) -> None:
    assert options.whole_number_or_none("max_waiting", None) is None
    assert options.whole_number_or_none("max_waiting", 0) == 0
    with pytest.raises(ConfigurationError, match="max_waiting must be a whole number"):
        options.whole_number_or_none("max_waiting", bad)


def test_the_jitter_of_a_lifetime_is_a_tenth_unless_given_and_never_more_than_it() -> None:
    assert lifetime_option(100, None).jitter == 10.0
    assert lifetime_option(100, 100).jitter == 100.0
    assert lifetime_option(0, None).max_lifetime == 0.0
    with pytest.raises(ConfigurationError, match="max_lifetime_jitter"):
        lifetime_option(1, 2)
    with pytest.raises(ConfigurationError, match="max_lifetime_jitter"):
        lifetime_option(1, math.nan)


REFUSED_DSNS: list[Any] = [
    f"postgresql://app:{CANARY}@db/orders",
    "postgresql://app@db/orders",
    f"postgresql://:{CANARY}@db/orders",
    f"postgresql://app%3A{CANARY}%40db/orders",
    f"postgresql://db/orders?password={CANARY}",
    "postgresql://db/orders?user=app",
    f"postgresql://db/orders?sslmode=require&password={CANARY}",
    f"postgresql://db/orders?%70assword={CANARY}",
    f"host=db password={CANARY}",
    f"mysql://db/{CANARY}",
    f"postgresql://[{CANARY}/orders",
    f"postgresql://app:1234/{CANARY}@db/orders",
    f"postgresql://app:1234#{CANARY}@db/orders",
    f"postgresql://app:1234?{CANARY}@db/orders",
    f"postgresql://app:1234?x={CANARY}@db/orders",
    f"postgresql://app:a@1234?x={CANARY}@db/orders",
    f"postgresql://db,app:{CANARY}?a=b@db/orders",
    f"{CANARY}",
    CANARY.encode(),
    7,
]


@pytest.mark.parametrize("dsn", REFUSED_DSNS)
@pytest.mark.parametrize("by_position", [True, False])
def test_a_dsn_with_an_account_or_that_is_none_is_refused_and_not_shown(dsn: Any, by_position: bool) -> None:
    with pytest.raises(ConfigurationError, match="dsn") as caught:
        options.check_connect_arguments((dsn,) if by_position else (), {} if by_position else {"dsn": dsn})
    assert CANARY not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    "dsn",
    [
        None,
        "postgresql://db.internal:5433/orders?sslmode=verify-full",
        "postgres://db1:5432,db2:5433/orders?target_session_attrs=primary",
        "postgresql:///orders?host=/run/postgresql",
        "postgresql://[::1]:5432/orders",
        "postgresql://db,db2:5433/orders?application_name=me@here",
        "postgresql://%2Ftmp/a%40b",
        "postgresql://",
    ],
)
def test_a_dsn_without_an_account_is_taken(dsn: str | None) -> None:
    options.check_connect_arguments((dsn,), {"host": "db", "user": None, "password": None})


@pytest.mark.parametrize("key", ["user", "password"])
def test_an_account_beside_credentials_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key}= cannot be given") as caught:
        options.check_connect_arguments((), {key: CANARY})
    assert CANARY not in str(caught.value)


def test_only_the_dsn_may_be_given_by_position() -> None:
    with pytest.raises(ConfigurationError, match="only the DSN"):
        options.check_connect_arguments(("postgresql://db", CANARY), {})
