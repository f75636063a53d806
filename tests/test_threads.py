"""Our own threads, whatever fills other threads, and whatever hangs in ours."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator

import pytest

from aiopqr import _threads
from aiopqr._threads import OwnThread, Threads, in_thread

WAIT = 20.0


class Held:
    """A function that hangs until the test lets it go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.end = threading.Event()
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.begun.release()
        assert self.end.wait(WAIT)
        return threading.current_thread().name


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.end.set()


def named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


async def begun(held: Held, count: int) -> None:
    for _ in range(count):
        assert await asyncio.get_running_loop().run_in_executor(None, held.begun.acquire, True, WAIT)


async def test_a_function_runs_in_a_daemon_thread_and_its_result_comes_back() -> None:
    thread = await in_thread(threading.current_thread)
    assert thread.daemon
    assert thread is not threading.main_thread()
    assert await in_thread(int, "ff", base=16) == 255


async def test_what_the_function_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await in_thread(next, iter(()))


async def test_the_function_sees_the_callers_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    assert await in_thread(variable.get) == "mine"


async def test_no_more_threads_than_the_limit_and_callers_keep_their_timeouts(held: Held) -> None:
    threads = Threads(3, "limited")
    hung = [threads.submit(held) for _ in range(3)]
    await begun(held, 3)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await threads.run(held)
    assert len(named("limited")) == 3
    assert not threads._jobs  # calls that were given up use no memory
    later = threads.submit(str)
    held.end.set()
    assert await asyncio.gather(*hung) == ["limited"] * 3
    assert await later == ""
    assert held.calls == 3


async def test_threads_are_used_again(held: Held) -> None:
    threads = Threads(4, "reused")
    for _ in range(20):
        await threads.run(int)
        while threads._idle < threads._started:  # it has handed over its result, and is about to look for more
            await asyncio.sleep(0)
    assert len(named("reused")) == 1


async def test_an_own_thread_has_one_call_in_flight(held: Held) -> None:
    own = OwnThread("own")
    first = asyncio.create_task(own.run(held))
    await begun(held, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await own.run(int)
    first.cancel()  # like a fetch that has timed out; the thread still hangs
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await own.run(int)
    assert len(named("own")) == 1
    held.end.set()
    assert await own.run(int) == 0


async def test_the_default_executor_is_not_needed(held: Held) -> None:
    loop = asyncio.get_running_loop()
    filled = [loop.run_in_executor(None, held) for _ in range(40)]
    assert await asyncio.wait_for(in_thread(int), WAIT) == 0
    held.end.set()
    await asyncio.gather(*filled)


async def test_idle_threads_end_and_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_IDLE", 0.01)
    threads = Threads(2, "ending")

    class Argument:
        def method(self) -> threading.Thread:
            return threading.current_thread()

    argument = Argument()
    thread = await threads.run(argument.method)
    gone = weakref.ref(argument)
    del argument
    await asyncio.get_running_loop().run_in_executor(None, thread.join, WAIT)
    assert not thread.is_alive()
    gc.collect()
    assert gone() is None
    assert await threads.run(int) == 0


async def test_a_failed_call_leaves_no_cycle() -> None:
    gc.collect()
    gc.disable()
    try:
        threads = Threads(1, "cycle")
        future = threads.submit(lambda: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            await future
        gone = weakref.ref(future)
        del future
        await asyncio.sleep(0)  # until here, the loop is in the step that the future woke
        while threads._idle < threads._started:
            await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


async def test_without_a_thread_to_be_had_the_call_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads(2, "none")
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError, match="can't start"):
        await threads.run(int)
    monkeypatch.undo()
    assert await threads.run(int) == 0


def test_a_closed_loop_is_survived(held: Held) -> None:
    threads = Threads(1, "closed")

    async def leave() -> None:
        threads.submit(held)
        await begun(held, 1)

    asyncio.run(leave())
    held.end.set()
    assert asyncio.run(threads.run(int)) == 0


def run(code: str) -> str:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=True)
    assert not done.stderr
    return done.stdout.strip()


def test_a_process_ends_while_calls_hang() -> None:
    code = """
        import asyncio, threading
        from aiopqr._threads import OwnThread, in_thread
        async def main():
            for run in (in_thread, OwnThread().run):
                try:
                    async with asyncio.timeout(0.2):
                        await run(threading.Event().wait)
                except TimeoutError:
                    print("timeout")
        asyncio.run(main())
    """
    assert run(code) == "timeout\ntimeout"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    code = """
        import asyncio, os, threading, warnings
        from aiopqr._threads import OwnThread, in_thread
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
        own, held = OwnThread(), threading.Event()
        async def hang():
            for run in [in_thread] * 4 + [own.run]:
                task = asyncio.create_task(run(held.wait))
                await asyncio.sleep(0.01)
                task.cancel()
        async def work():
            async with asyncio.timeout(10):
                return await in_thread(int) + await own.run(int)
        asyncio.run(hang())
        if os.fork() == 0:
            os._exit(asyncio.run(work()))
        print(os.wait()[1])
        held.set()
        print(asyncio.run(work()))
    """
    assert run(code) == "0\n0"
