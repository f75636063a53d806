"""Whatever is raised in the refresh task, and whatever loop or process it is in, refreshing continues."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest

import aiopqr
from aiopqr._refresh import feed as module
from aiopqr._refresh import feed_of
from aiopqr._refresh.plan import Need
from aiopqr._refresh.quarantine import Attempt, Quarantine
from aiopqr.testing import ScriptedSource

PAIR = aiopqr.CredentialPair(aiopqr.Credential("app_odd", "one"), aiopqr.Credential("app_even", "two"))
CHANGED = replace(PAIR, odd=aiopqr.Credential("app_odd", "changed"))


def raising_once(function: Callable[..., object], error: Exception) -> Callable[..., object]:
    errors = [error]

    def wrapped(*args: object, **kwargs: object) -> object:
        if errors:
            raise errors.pop()
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("where", ["sleep", "lock", "wait", "completed", "need", "install"])
async def test_whatever_is_raised_in_the_task_is_logged_and_refreshing_goes_on(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RECOVERY_PAUSE", 0.01)
    source = ScriptedSource(PAIR, interval=0.02)
    async with aiopqr.Refresher(source) as refresher:
        await source.wait_fetched(2)
        unforeseen = RuntimeError("unforeseen")
        state = refresher._feed._state
        assert state
        if where == "lock":
            monkeypatch.setattr(state.lock, "acquire", raising_once(state.lock.acquire, unforeseen))
        elif where in ("sleep", "wait"):
            owner, name = (module, "wait_until") if where == "sleep" else (module.asyncio, "wait")
            monkeypatch.setattr(owner, name, raising_once(getattr(owner, name), unforeseen))
        else:
            feed = feed_of(refresher)
            monkeypatch.setattr(feed, f"_{where}", raising_once(getattr(feed, f"_{where}"), unforeseen))
        feed_of(refresher).request(Need.REFUSED)
        async with asyncio.timeout(20):
            while "unforeseen" not in caplog.text:
                await asyncio.sleep(0.01)
        monkeypatch.undo()
        source.pair = CHANGED
        await asyncio.wait_for(refresher.refresh(), 20)
        assert refresher.pair == CHANGED
    assert "Traceback" in caplog.text, "logged with its stack"


async def test_a_log_handler_that_raises_keeps_neither_refreshing_nor_those_who_wait(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the log's socket is gone")

    handler = Broken()
    logging.getLogger("aiopqr").addHandler(handler)
    try:
        source = ScriptedSource(PAIR)

        def bad_listener(event: object) -> None:
            raise RuntimeError("a bad listener")

        async with aiopqr.Refresher(source, listeners=[bad_listener]) as refresher:
            source.then(aiopqr.SourceError("down for a moment"))
            with pytest.raises(aiopqr.SourceError):
                await asyncio.wait_for(refresher.refresh(), 10)
            source.pair = CHANGED
            await asyncio.wait_for(refresher.refresh(), 10)
    finally:
        logging.getLogger("aiopqr").removeHandler(handler)
    assert "the log's socket is gone" in capsys.readouterr().err


async def test_a_subscriber_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        def replace(self, pair: object) -> None:
            raise RuntimeError("bad subscriber")

        def on_event(self, event: object) -> None:
            raise RuntimeError("bad subscriber")

        def is_refused(self) -> bool:
            return False

    source, bad = ScriptedSource(PAIR), Bad()
    async with aiopqr.Refresher(source) as refresher:
        feed_of(refresher).subscribe(bad)
        source.pair = CHANGED
        await refresher.refresh()
        assert refresher.pair == CHANGED
    assert "bad subscriber" in caplog.text


async def test_a_fetch_that_times_out_fails_once() -> None:
    source = ScriptedSource(PAIR)
    async with aiopqr.Refresher(source, timeout=0.05) as refresher:
        source.gate = asyncio.Event()
        with pytest.raises(aiopqr.SourceTimeout):
            await refresher.refresh()
        assert (refresher.stats().failed, refresher.stats().failures_in_a_row) == (1, 1)


async def test_an_error_of_the_users_own_fetch_says_where_it_came_from_and_shows_no_local() -> None:
    async def fetch() -> aiopqr.CredentialPair:
        password = "hush-7f3a"
        return {"data": password}["secret"]  # type: ignore[return-value]

    with pytest.raises(KeyError, match="secret") as caught:
        await aiopqr.Refresher(fetch).start()
    printed = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    place = next(frame for frame in printed.stack if frame.name == "fetch" and frame.filename == __file__)
    assert place.lineno == fetch.__code__.co_firstlineno + 2
    assert 'return {"data": password}["secret"]' in "".join(printed.format())
    assert not any("hush-7f3a" in repr(frame.locals) for frame in printed.stack)
    assert "KeyError: 'secret'" in "".join(traceback.format_exception(caught.value))


# Loops and processes.


def in_a_new_loop(refresher: aiopqr.Refresher, source: ScriptedSource, pair: aiopqr.CredentialPair) -> None:
    async def use() -> None:
        source.pair = pair
        async with asyncio.timeout(10):
            await refresher.refresh()
        assert refresher.pair == pair

    asyncio.run(use())


def test_a_refresher_goes_on_in_the_next_event_loop() -> None:
    source = ScriptedSource(PAIR)
    refresher = aiopqr.Refresher(source)
    asyncio.run(refresher.start())  # type: ignore[arg-type]
    in_a_new_loop(refresher, source, CHANGED)
    in_a_new_loop(refresher, source, PAIR)
    refresher.terminate()


def test_a_loop_that_ended_in_the_middle_of_a_fetch_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    source = ScriptedSource(PAIR)
    refresher = aiopqr.Refresher(source)
    loop = asyncio.new_event_loop()

    async def stop_while_fetching() -> None:
        await refresher.start()
        source.gate = asyncio.Event()
        feed_of(refresher).request(Need.ASKED)
        await source.wait_begun(2)

    loop.run_until_complete(stop_while_fetching())
    loop.close()  # without cancelling anything
    source.gate = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_a_new_loop(refresher, source, CHANGED)
        gc.collect()
    refresher.terminate()
    assert "destroyed" not in caplog.text


async def test_a_task_that_somebody_cancelled_is_made_anew() -> None:
    source = ScriptedSource(PAIR, interval=0.01)
    async with aiopqr.Refresher(source) as refresher:
        task = refresher._task
        assert task
        task.cancel()
        await asyncio.wait({task})
        source.pair = CHANGED
        await asyncio.wait_for(refresher.refresh(), 10)
        assert refresher.pair == CHANGED


async def test_a_refresher_of_a_loop_that_runs_in_another_thread_says_so() -> None:
    async with aiopqr.Refresher(ScriptedSource(PAIR)) as refresher:
        problem = await asyncio.to_thread(lambda: asyncio.run(_refused(refresher)))
    assert "runs in another thread" in problem


async def _refused(refresher: aiopqr.Refresher) -> str:
    with pytest.raises(aiopqr.ConfigurationError) as caught:
        await refresher.refresh()
    return str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_refresher_goes_on_in_a_forked_child() -> None:
    source = ScriptedSource(PAIR)
    refresher = aiopqr.Refresher(source)
    codes = []

    async def fork_while_running() -> None:
        async with refresher:
            await asyncio.sleep(0)
            if (child := os.fork()) == 0:
                code = 1
                try:
                    asyncio.events._set_running_loop(None)
                    in_a_new_loop(refresher, source, CHANGED)
                    code = 0
                finally:
                    os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            await refresher.refresh()
            assert refresher.pair == PAIR, "the parent's goes on, too"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about os.fork() with threads
        asyncio.run(fork_while_running())
    assert codes == [0]


def test_no_password_is_kept_of_what_was_refused_or_accepted() -> None:
    quarantine = Quarantine()
    for n in range(100):
        attempt = Attempt(aiopqr.Parity.ODD, aiopqr.Credential("app", f"canary-{n}"), 1, float(n))
        (quarantine.accept if n % 2 else quarantine.refuse)(attempt, float(n))
    del attempt
    gc.collect()
    kept = [thing for thing in gc.get_objects() if isinstance(thing, aiopqr.Credential)]
    assert not [thing for thing in kept if thing.password.reveal().startswith("canary-")]
    assert aiopqr.Credential("app", "canary-98") in quarantine
    assert aiopqr.Credential("app", "canary-99") not in quarantine
