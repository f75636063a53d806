"""One task, one fetch at a time, and nothing late or bad gets in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

import aiopqr
from aiopqr import events
from aiopqr._refresh import feed_of, fetching
from aiopqr._refresh.plan import Need
from aiopqr.testing import ScriptedSource
from aiopqr.testing.source import HANG

PAIR = aiopqr.CredentialPair(aiopqr.Credential("app_odd", "one"), aiopqr.Credential("app_even", "two"))
CHANGED = replace(PAIR, odd=aiopqr.Credential("app_odd", "changed"))


async def test_refresh_returns_after_a_fetch_that_began_after_the_call() -> None:
    source = ScriptedSource(PAIR)
    async with aiopqr.Refresher(source) as refresher:
        source.gate = asyncio.Event()
        first = asyncio.create_task(refresher.refresh())
        await source.wait_begun(2)
        source.pair = CHANGED
        second = asyncio.create_task(refresher.refresh())
        await asyncio.sleep(0)
        source.gate.set()
        await first
        await second
        assert refresher.pair == CHANGED
        assert source.fetches == 3


async def test_any_number_of_requests_during_a_fetch_cause_one_more() -> None:
    source = ScriptedSource(PAIR)
    async with aiopqr.Refresher(source, interval=0) as refresher:
        source.gate = asyncio.Event()
        feed_of(refresher).request(Need.ASKED)
        await source.wait_begun(2)
        waiting = [asyncio.create_task(refresher.refresh()) for _ in range(50)]
        await asyncio.sleep(0)
        source.gate.set()
        await asyncio.gather(*waiting)
        assert source.fetches == 3


async def test_a_fetch_that_timed_out_never_installs_its_result() -> None:
    late = asyncio.Event()
    fetched = asyncio.Event()
    calls = 0

    async def fetch() -> aiopqr.CredentialPair:
        nonlocal calls
        calls += 1
        if calls != 2:
            return PAIR
        while not late.is_set():
            try:
                await late.wait()
            except asyncio.CancelledError:
                continue
        fetched.set()
        return CHANGED

    async with aiopqr.Refresher(fetch, timeout=0.05) as refresher:
        with pytest.raises(aiopqr.SourceTimeout):
            await refresher.refresh()
        late.set()
        await fetched.wait()
        await asyncio.sleep(0)
        assert refresher.pair == PAIR


async def test_the_sources_own_interval_is_kept_without_being_asked() -> None:
    source = ScriptedSource(PAIR, interval=0.01)
    async with aiopqr.Refresher(source) as refresher:
        source.pair = CHANGED
        await source.wait_fetched(3)
        assert refresher.pair == CHANGED


async def test_a_pair_that_says_when_it_will_be_out_of_date_is_fetched_again_then() -> None:
    source = ScriptedSource(replace(PAIR, refresh_in=0.2))
    async with aiopqr.Refresher(source, interval=0):
        await source.wait_fetched(3)


async def test_a_failure_backs_off_and_the_pair_stays() -> None:
    source = ScriptedSource(PAIR)
    events: list[object] = []
    async with aiopqr.Refresher(source, listeners=[events.append]) as refresher:
        source.then(ConnectionError("down"))
        with pytest.raises(ConnectionError, match="down"):
            await refresher.refresh()
        assert refresher.pair == PAIR
        async with asyncio.timeout(10):
            while refresher.stats().failures_in_a_row:
                await asyncio.sleep(0.01)
        assert source.fetches == 3
    assert [type(event).__name__ for event in events] == ["RefreshFailed", "RefreshRecovered"]
    assert "ConnectionError: down" in events[0].error


async def test_a_source_that_goes_on_failing_is_logged_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    source = ScriptedSource(PAIR, interval=0.01)
    events: list[object] = []
    async with aiopqr.Refresher(source, listeners=[events.append]):
        source.error = ConnectionError("down")
        await asyncio.wait_for(source.wait_fetched(10), 10)
    assert len(events) >= 8
    assert len([record for record in caplog.records if "fetching credentials failed" in record.message]) <= 4


async def test_an_error_of_unknown_type_is_told_by_its_type_alone() -> None:
    source = ScriptedSource(PAIR)
    events: list[object] = []
    async with aiopqr.Refresher(source, listeners=[events.append]) as refresher:
        source.then(ValueError("could not parse 'hush'"))
        with pytest.raises(ValueError, match="hush"):
            await refresher.refresh()
    assert events[0].error == "ValueError"


async def test_a_listener_that_raises_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    source = ScriptedSource(PAIR)
    heard: list[object] = []

    def bad(event: object) -> None:
        raise RuntimeError("a bad listener")

    async with aiopqr.Refresher(source, listeners=[bad, heard.append]) as refresher:
        source.pair = CHANGED
        await refresher.refresh()
        assert refresher.pair == CHANGED
    assert len(heard) == 1
    assert "a bad listener" in caplog.text


async def test_closing_ends_a_fetch_that_hangs_and_those_who_wait_for_it() -> None:
    source = ScriptedSource(PAIR)
    refresher = await aiopqr.Refresher(source).start()
    source.then(HANG)
    waiting = asyncio.create_task(refresher.refresh())
    await source.wait_begun(2)
    await refresher.close()
    with pytest.raises(aiopqr.AiopqrError, match="closed"):
        await waiting
    assert source.ended == 2
    with pytest.raises(aiopqr.AiopqrError, match="closed"):
        await refresher.refresh()


async def test_starting_at_the_same_time_fetches_once() -> None:
    source = ScriptedSource(PAIR, latency=0.01)
    refresher = aiopqr.Refresher(source)
    await asyncio.gather(*(refresher.start() for _ in range(5)))
    assert source.fetches == 1
    await refresher.close()


async def test_a_failed_start_can_be_tried_again() -> None:
    source = ScriptedSource(PAIR)
    source.then(ConnectionError("down"))
    refresher = aiopqr.Refresher(source)
    with pytest.raises(ConnectionError):
        await refresher.start()
    await refresher.start()
    assert refresher.pair == PAIR
    await refresher.close()


class Closing(ScriptedSource):
    """Counts how many times it was closed."""

    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


async def test_the_source_is_closed_with_its_refresher() -> None:
    source = Closing(PAIR)
    async with aiopqr.Refresher(source) as refresher:
        assert source.closed == 0
    assert source.closed == 1
    await refresher.close()
    assert source.closed == 1, "once"


async def test_a_source_of_two_refreshers_is_closed_with_the_last_one() -> None:
    source = Closing(PAIR)
    first, second = aiopqr.Refresher(source), aiopqr.Refresher(source)
    await first.start()
    await second.start()
    await first.close()
    assert source.closed == 0
    await second.refresh()
    await second.close()
    assert source.closed == 1


async def test_a_start_that_fails_closes_the_source_and_the_next_one_opens_it_again() -> None:
    source = Closing(PAIR)
    source.then(ConnectionError("down"))
    refresher = aiopqr.Refresher(source)
    with pytest.raises(ConnectionError):
        async with refresher:
            pass
    assert source.closed == 1
    async with refresher:
        assert source.closed == 1
    assert source.closed == 2


async def test_a_start_that_is_cancelled_closes_the_source_after_its_fetch_has_ended() -> None:
    class Ordered(Closing):
        async def aclose(self) -> None:
            assert self.ended == 1
            await super().aclose()

    source = Ordered(PAIR)
    source.then(HANG)
    starting = asyncio.create_task(aiopqr.Connector(credentials=source).start())
    await source.wait_begun(1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert source.closed == 1


async def test_a_start_that_fails_leaves_a_source_open_that_another_refresher_uses() -> None:
    source = Closing(PAIR)
    async with aiopqr.Refresher(source):
        source.then(ConnectionError("down"))
        with pytest.raises(ConnectionError):
            await aiopqr.Refresher(source).start()
        assert source.closed == 0
    assert source.closed == 1


async def test_a_pool_that_cannot_be_opened_closes_the_source_once() -> None:
    source = Closing(PAIR)
    source.then(ConnectionError("down"))
    with pytest.raises(ConnectionError):
        await aiopqr.create_pool("postgresql://127.0.0.1:1/none", credentials=source)
    assert source.closed == 1


async def test_a_source_that_cannot_be_closed_does_not_hide_why_the_start_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn(ScriptedSource):
        async def aclose(self) -> None:
            raise RuntimeError("stubborn")

    source = Stubborn(PAIR)
    source.then(ConnectionError("down"))
    with pytest.raises(ConnectionError):
        await aiopqr.Refresher(source).start()
    assert "stubborn" in caplog.text


async def test_closing_does_not_wait_forever_for_a_source_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging(ScriptedSource):
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(fetching, "_CLOSE_MAX", 0.05)
    async with asyncio.timeout(10):
        async with aiopqr.Refresher(Hanging(PAIR)):
            pass
    assert "the source (Hanging) was not closed within 0.05 s" in caplog.text


async def test_a_connector_of_a_shared_refresher_leaves_it_open() -> None:
    async with aiopqr.Refresher(ScriptedSource(PAIR)) as refresher:
        async with aiopqr.Connector(credentials=refresher):
            pass
        await refresher.refresh()


async def test_starved_connects_fetch_at_once_and_go_on_asking() -> None:
    class Starved:
        def replace(self, pair: object) -> None: ...
        def on_event(self, event: object) -> None: ...
        def is_refused(self) -> bool:
            return True

    source = ScriptedSource(PAIR, interval=0)
    starved = Starved()
    async with aiopqr.Refresher(source) as refresher:
        feed_of(refresher).subscribe(starved)
        feed_of(refresher).request(Need.STARVED)
        await asyncio.wait_for(source.wait_fetched(4), 10)


async def test_a_staged_password_is_reported_and_shown_until_the_store_has_promoted_it() -> None:
    staged = replace(PAIR, pending=aiopqr.Credential("app_odd", "staged"))
    heard: list[events.Event] = []
    source = ScriptedSource(staged)
    async with aiopqr.Refresher(source, listeners=[heard.append]) as refresher:
        aside = refresher.stats().stepping_aside
        assert aside
        assert (aside.parity, aside.username) == ("odd", "app_odd")
        assert 890 < aside.ends_in <= 900
        source.pair = replace(PAIR, odd=aiopqr.Credential("app_odd", "staged"))
        await refresher.refresh()
        assert refresher.stats().stepping_aside is None
    begun, ended = (event for event in heard if isinstance(event, events.SteppedAside | events.SteppedBack))
    assert isinstance(begun, events.SteppedAside)
    assert isinstance(ended, events.SteppedBack)
    assert ended.closed


async def test_the_stores_time_of_staging_shortens_stepping_aside() -> None:
    since = datetime.now(UTC) - timedelta(minutes=10)
    staged = replace(PAIR, pending=aiopqr.Credential("app_odd", "staged"), pending_since=since)
    async with aiopqr.Refresher(ScriptedSource(staged)) as refresher:
        aside = refresher.stats().stepping_aside
        assert aside
        assert 290 < aside.ends_in <= 300
