"""Mistakes immediately raise errors that name what is wrong, and never show a value that may be secret."""

from __future__ import annotations

import asyncio
import math

import pytest

import aiopqr
from aiopqr.testing import RotatingPostgres
from aiopqr.testing.source import HANG

from .conftest import MakePool, eventually

PAIR = aiopqr.CredentialPair(aiopqr.Credential("odd", "hush-odd"), aiopqr.Credential("even", "hush-even"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_lifetime": -1}, "max_lifetime"),
        ({"max_lifetime": math.nan}, "max_lifetime"),
        ({"max_lifetime": math.inf}, "max_lifetime"),
        ({"max_lifetime": "1800"}, "max_lifetime"),
        ({"max_lifetime": 1, "max_lifetime_jitter": 2}, "max_lifetime_jitter"),
        ({"acquire_timeout": -1}, "acquire_timeout"),
        ({"reset_timeout": math.nan}, "reset_timeout"),
        ({"check_after": -1}, "check_after"),
        ({"leak_detection_threshold": -1}, "leak_detection_threshold"),
        ({"max_waiting": -1}, "max_waiting"),
        ({"max_waiting": 1.5}, "max_waiting"),
        ({"session_reset": "none"}, "session_reset"),
        ({"refresh_interval": -1}, "refresh_interval"),
        ({"fetch_timeout": 0}, "fetch_timeout"),
        ({"user": "me"}, "user="),
        ({"password": "hush-odd"}, "password="),
        ({"dsn": "postgresql://me@host/db"}, "dsn"),
        ({"dsn": "postgresql://me:hush-odd@host/db"}, "dsn"),
        ({"dsn": "postgresql://host/db?password=hush-odd"}, "dsn"),
        ({"dsn": "postgresql://host/db?user=me"}, "dsn"),
        ({"dsn": "mysql://host/db"}, "dsn"),
        ({"dsn": "host=localhost password=hush-odd"}, "dsn"),
        ({"dsn": "postgresql://[half/db"}, "dsn"),
        ({"dsn": 5}, "dsn"),
        ({"credentials": None}, "credentials"),
        ({"credentials": "hush-odd"}, "credentials"),
        ({"credentials": {"odd_password": "hush-odd"}}, "credentials"),
    ],
)
async def test_a_bad_option_is_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(aiopqr.ConfigurationError, match=named) as caught:
        aiopqr.create_pool(**{"credentials": PAIR, **options})
    assert "hush" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


async def test_a_bad_port_in_the_dsn_is_asyncpgs_to_tell(make_pool: MakePool) -> None:
    with pytest.raises(ValueError):
        await make_pool(dsn="postgresql://127.0.0.1:nonsense/db", min_size=1)


@pytest.mark.parametrize("answer", [None, 5, "hush", {"odd_password": "hush"}, [PAIR]])
async def test_a_source_that_returns_something_else_is_told(
    make_pool: MakePool, postgres: RotatingPostgres, answer: object
) -> None:
    postgres.source.pair = answer
    with pytest.raises(aiopqr.InvalidSecret, match=f"CredentialPair, not {type(answer).__name__}") as caught:
        await make_pool(min_size=1)
    assert "hush" not in str(caught.value)


async def test_a_source_that_raises_is_passed_on(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    postgres.source.error = LookupError("no such secret")
    with pytest.raises(LookupError, match="no such secret"):
        await make_pool(min_size=1)


async def test_a_callable_that_is_not_async_is_told(make_pool: MakePool) -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="async"):
        await make_pool(credentials=lambda: PAIR, min_size=1)


async def test_a_source_that_hangs_is_given_up(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    postgres.source.then(HANG)
    with pytest.raises(aiopqr.SourceTimeout, match=r"did not answer within 0\.05 s"):
        await make_pool(min_size=1, fetch_timeout=0.05)
    assert postgres.source.ended == 1


async def test_a_source_that_ignores_its_cancellation_does_not_hold_up_the_pool(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    release = asyncio.Event()
    ended = asyncio.Event()

    async def fetch() -> aiopqr.CredentialPair:
        if fetch.calls:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            ended.set()
        fetch.calls += 1
        return postgres.pair

    fetch.calls = 0
    async with make_pool(credentials=fetch, fetch_timeout=0.05) as pool:
        with pytest.raises(aiopqr.SourceTimeout):
            await pool.refresh()
        assert await pool.fetchval("select 1") == 1
    release.set()
    await ended.wait()


async def test_a_bad_secret_never_replaces_a_good_pair(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    async with make_pool() as pool:
        for bad in ("garbage", aiopqr.InvalidSecret("odd_password is missing"), RuntimeError("boom")):
            postgres.source.then(bad)
            with pytest.raises((aiopqr.InvalidSecret, RuntimeError)):
                await pool.refresh()
        assert pool.pair == postgres.pair
        assert pool.stats().refresh.failed == 3
        await pool.refresh()
        await eventually(lambda: pool.stats().refresh.failures_in_a_row == 0)
