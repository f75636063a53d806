from __future__ import annotations

import asyncio

import pytest

from aiopqr.credentials import Credential, CredentialPair
from aiopqr.sources import CredentialSource
from aiopqr.testing import HANG, ScriptedSource

OLD = CredentialPair(Credential("odd", "1"), Credential("even", "2"))
NEW = CredentialPair(Credential("odd", "3"), Credential("even", "2"))


@pytest.fixture
def source():
    return ScriptedSource(OLD)


async def test_it_is_a_source_that_answers_with_its_pair(source):
    assert isinstance(source, CredentialSource)
    assert await source.fetch() == OLD
    source.pair = NEW
    assert await source.fetch() == NEW
    assert source.fetches == source.ended == 2


async def test_a_pair_published_for_later_shows_when_its_time_has_come(source):
    source.publish(NEW, after=0.02)
    assert await source.fetch() == OLD
    while await source.fetch() == OLD:
        await asyncio.sleep(0.001)
    assert source.pair == NEW


async def test_a_held_fetch_returns_what_was_published_before_it_began(source):
    source.gate = asyncio.Event()
    fetch = asyncio.create_task(source.fetch())
    await source.wait_begun(1)
    source.pair = NEW
    assert source.ended == 0
    source.gate.set()
    assert await fetch == OLD
    await source.wait_fetched(1)


async def test_scripted_answers_come_one_each_and_then_the_pair_again(source):
    source.then(OSError("store down"), "garbage")
    with pytest.raises(OSError, match="store down"):
        await source.fetch()
    assert await source.fetch() == "garbage"
    assert await source.fetch() == OLD


async def test_it_fails_for_as_long_as_it_has_an_error(source):
    source.error = ConnectionError("no store")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await source.fetch()
    source.error = None
    assert await source.fetch() == OLD


async def test_a_hanging_fetch_ends_when_it_is_cancelled(source):
    source.then(HANG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await source.fetch()
    assert (source.fetches, source.ended) == (1, 1)


async def test_latency_delays_the_answer(source):
    source.latency = 0.02
    began = asyncio.get_running_loop().time()
    await source.fetch()
    assert asyncio.get_running_loop().time() - began >= 0.019


async def test_every_waiter_hears_of_every_fetch(source):
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for count in (1, 2, 2):
            group.create_task(source.wait_fetched(count))
        for _ in range(2):
            group.create_task(source.fetch())


def test_its_repr_shows_no_pair(source):
    assert "odd" not in repr(source)
