"""The fixtures as a user's project gets them, and ours."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from aiopqr.testing import ExistingPostgres, NotAvailable, NotSupported, server_of
from aiopqr.testing.server import run_apart

pytest_plugins = ["pytester"]

USERS_TESTS = """
import asyncpg, pytest

async def old_password_is_refused(db, parity):
    old = getattr(db.pair, parity)
    await db.rotate(parity)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(db.dsn, user=old.username, password=old.password.reveal())

@pytest.mark.asyncio
async def test_under_pytest_asyncio(rotating_postgres):
    await old_password_is_refused(rotating_postgres, "odd")

@pytest.mark.anyio
async def test_under_anyio(rotating_postgres):
    await old_password_is_refused(rotating_postgres, "even")

@pytest.fixture
def anyio_backend():
    return "asyncio"

def test_without_a_loop(rotating_postgres):
    assert rotating_postgres.source.pair == rotating_postgres.pair

def test_afterwards_nothing_is_left(aiopqr_server):
    from aiopqr.testing.server import run_apart
    left = run_apart(aiopqr_server.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'app%'"))
    left += run_apart(aiopqr_server.execute("SELECT datname FROM pg_database WHERE datname LIKE 'app%'"))
    assert not left
"""


def test_the_plugin_serves_a_users_project_under_any_runner(pytester, monkeypatch):
    monkeypatch.delenv("AIOPQR_TEST_POSTGRES", raising=False)
    pytester.makepyfile(USERS_TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-o", "asyncio_mode=strict")
    result.assert_outcomes(passed=4)


async def test_a_rotation_changes_the_database_and_then_the_source(postgres):
    old = postgres.pair.odd
    new = await postgres.rotate("odd")
    assert new.odd != old
    assert postgres.source.pair == new
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.dsn, user=old.username, password=old.password.reveal())
    await (await postgres.connect("odd")).close()
    assert postgres.failed_logins() == 1


async def test_a_rotation_of_both_can_leave_the_store_behind(postgres):
    old = postgres.pair
    new = await postgres.rotate_both(store_delay=None)
    assert postgres.source.pair == old
    assert new.odd != old.odd
    assert new.even != old.even
    for parity in ("odd", "even"):
        await (await postgres.connect(parity)).close()


async def test_sessions_are_told_apart_and_ended(postgres):
    odd, even = await postgres.connect("odd"), await postgres.connect("even")
    assert len(await postgres.sessions()) == 2
    assert await postgres.terminate("odd") == 1
    assert [row["pid"] for row in await postgres.sessions()] == [even.get_server_pid()]
    odd.terminate()
    await even.close()


OUR_TESTS = """
import asyncio, pytest

async def test_leaves_a_task():
    asyncio.create_task(asyncio.sleep(60), name="forgotten")

@pytest.mark.leaves_tasks
async def test_may_leave_a_task():
    asyncio.create_task(asyncio.sleep(60))

@pytest.fixture
async def background():
    task = asyncio.create_task(asyncio.sleep(60))
    yield
    task.cancel()
    await asyncio.wait([task])

async def test_with_a_task_that_its_fixture_ends(background):
    pass

KEPT = []
async def test_leaves_a_connection(postgres):
    KEPT.append(await postgres.connect())

async def test_what_the_server_cannot_do():
    from aiopqr.testing import NotSupported
    raise NotSupported("no such thing here")

async def test_which_loop():
    assert "uvloop" not in type(asyncio.get_running_loop()).__module__
"""


@pytest.fixture
def our_run(pytester, request):
    """Run tests under this directory's conftest."""
    pytester.makeconftest((request.config.rootpath / "tests" / "conftest.py").read_text())
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nmarkers = leaves_tasks: x\n"
    )
    pytester.makepyfile(OUR_TESTS)
    return lambda *args: pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)


def test_forgetting_a_task_or_connection_fails_the_test(our_run):
    result = our_run("-k", "leave or ends")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*tasks left running: forgotten*"])
    result.stdout.fnmatch_lines(["*connections left open: app_*_odd (idle)*"])


@pytest.mark.parametrize(("expected", "exit_code"), [("such thing", 0), ("another reason", 1), (None, 0)])
def test_an_unexpected_skip_fails_the_run(our_run, expected, exit_code):
    result = our_run("-k", "cannot", *([f"--expect-skips={expected}"] if expected else []))
    assert result.ret == exit_code
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"* 1 {'UNEXPECTED ' if exit_code else ''}no such thing here"])


def test_the_loop_is_chosen(our_run):
    pytest.importorskip("uvloop", reason="uvloop is not installed")
    our_run("-k", "which_loop", "--loop=uvloop").assert_outcomes(failed=1)
    our_run("-k", "which_loop").assert_outcomes(passed=1)


def test_a_postgres_that_cannot_be_had_is_a_skip_that_says_why(our_run):
    result = our_run("-k", "leaves_a_connection", "--postgres=/nowhere")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no Postgres server in '/nowhere'*"])


def test_an_existing_server_serves_by_its_dsn(server):
    with server_of(server.admin_dsn() + "?sslmode=prefer") as existing:
        assert isinstance(existing, ExistingPostgres)
        assert existing.version == server.version
        assert existing.dsn_of("x") == server.dsn_of("x", sslmode="prefer")
        assert server.admin_password.reveal() not in f"{existing!r} {vars(existing)} {existing.dsn}"


async def test_an_existing_server_says_what_it_cannot_do(server):
    existing = ExistingPostgres(server.admin_dsn())
    for attempt in (existing.restart, existing.enable_tls, lambda: existing.set_hba([]), existing.configure):
        with pytest.raises(NotSupported, match="ExistingPostgres"):
            await attempt()
    with pytest.raises(NotSupported, match="log"):
        existing.failed_logins()


@pytest.mark.parametrize("dsn", ["postgresql://x:hush@127.0.0.1:1/postgres", "mysql://x:hush@y/z"])
def test_a_dsn_that_leads_nowhere_is_an_error_without_its_password(dsn):
    with pytest.raises(NotAvailable) as caught, server_of(dsn):
        pass
    assert "hush" not in str(caught.value)


def test_fixtures_can_run_coroutines_while_a_loop_runs():
    async def inner():
        return run_apart(asyncio.sleep(0, "done"))

    assert asyncio.run(inner()) == "done"
