"""Chooses the Postgres and the event loop of the tests, and checks that no test leaves anything behind."""

from __future__ import annotations

import asyncio
import collections
import inspect
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from aiopqr.testing import NotAvailable, NotSupported, PostgresServer, RotatingPostgres, server_of
from aiopqr.testing.server import run_apart

sys.path.insert(0, str(Path(__file__).parent))  # for `from support.proxy import Proxy`

_FAILED = pytest.StashKey[bool]()

hypothesis.settings.register_profile("default", deadline=None, max_examples=50, print_blob=True)
hypothesis.settings.register_profile("proof", deadline=None, max_examples=3000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aiopqr")
    group.addoption(
        "--postgres",
        default=os.environ.get("AIOPQR_TEST_POSTGRES", "embedded"),
        metavar="embedded|embedded18|system|testcontainers|DSN",
        help="the Postgres to test on (default: AIOPQR_TEST_POSTGRES, or embedded)",
    )
    group.addoption("--loop", choices=list(_LOOPS), default="asyncio", help="the event loop to test on")
    group.addoption(
        "--expect-skips", metavar="REGEX", help="fail the run if a test is skipped for a reason that does not match"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Skips(config.option.expect_skips))
    if config.option.loop != "asyncio":
        config.pluginmanager.register(_OtherLoop())
    if config.option.loop == "uvloop":
        # pytest-timeout's signal does not reach Python while uvloop waits, so a hanging test would never end.
        # A thread ends the process instead; xdist names the test and continues with another process.
        config.option.timeout_method = "thread"


class _OtherLoop:
    def pytest_asyncio_loop_factories(self, config: pytest.Config, item: pytest.Item) -> dict[str, object]:
        return {config.option.loop: _LOOPS[config.option.loop]}


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _eager() -> asyncio.AbstractEventLoop:
    """A loop whose tasks begin to run when they are created (Python 3.12)."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": _uvloop, "eager": _eager}


# The servers.


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The Postgres that ``--postgres`` chose. A test that changes its settings changes them back."""
    with server_of(pytestconfig.option.postgres) as chosen:
        yield chosen


@pytest.fixture(scope="session")
def aiopqr_server(server: PostgresServer) -> PostgresServer:
    return server


@pytest.fixture
def postgres(request: pytest.FixtureRequest, rotating_postgres: RotatingPostgres) -> Iterator[RotatingPostgres]:
    """A fresh database with two accounts, and a source that knows them. Fails a test that leaves sessions open."""
    yield rotating_postgres
    if not _may_leave_things(request):
        run_apart(_no_session_is_left(rotating_postgres))


async def _no_session_is_left(rotating: RotatingPostgres) -> None:
    deadline = time.monotonic() + 5.0  # the server notices an orderly close in milliseconds
    while left := await rotating.sessions():
        if time.monotonic() > deadline:
            pytest.fail("connections left open: " + ", ".join(f"{row['usename']} ({row['state']})" for row in left))
        await asyncio.sleep(0.005)


@pytest.fixture
def heeds_sigint() -> Iterator[None]:
    """Let child processes be interrupted. In a background job they would ignore SIGINT, as their parent does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# What tests may not leave behind.


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> None:
    """Set up before all other fixtures, so that they have been torn down when it looks."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)) and not request.node.get_closest_marker("anyio"):
        request.getfixturevalue("_no_task_is_left")


@pytest.fixture
async def _no_task_is_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(3):  # asyncpg cancels some of its own tasks without awaiting them
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left and not _may_leave_things(request):
        pytest.fail("tasks left running: " + ", ".join(sorted(task.get_name() for task in left)))


def _may_leave_things(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("leaves_tasks") is not None or request.node.stash.get(_FAILED, False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


# Skips.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    return (yield from _skipping_what_cannot_be_had())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    return (yield from _skipping_what_cannot_be_had())


def _skipping_what_cannot_be_had() -> Iterator[None]:
    try:
        return (yield)
    except (NotSupported, NotAvailable) as exc:
        pytest.skip(str(exc))


class _Skips:
    """Counts skips by reason, from reports, so that it works under xdist too."""

    def __init__(self, expected: str | None) -> None:
        self.expected = expected
        self.reasons: collections.Counter[str] = collections.Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._count(report)

    def _count(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1

    @property
    def unexpected(self) -> list[str]:
        return [] if self.expected is None else [why for why in self.reasons if not re.search(self.expected, why)]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.reasons:
            terminalreporter.section("skips")
        for why, count in self.reasons.most_common():
            flag = "UNEXPECTED " if why in self.unexpected else ""
            terminalreporter.line(f"{count:4} {flag}{why}", red=bool(flag))
