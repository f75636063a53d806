"""A Postgres in a container: it can do what the embedded one can."""

from __future__ import annotations

import secrets
import ssl

import asyncpg
import pytest

from aiopqr.testing import ContainerPostgres, NotAvailable, ServerError, server_of
from aiopqr.testing.server import run_apart


@pytest.fixture(scope="module")
def container():
    with server_of("testcontainers") as container:
        yield container


@pytest.fixture
async def pair(container):
    pair = await container.create_accounts()
    yield pair
    await container.drop_accounts("app_odd", "app_even", "app")


async def login(container, account, **options):
    return await asyncpg.connect(container.dsn, user=account.username, password=account.password.reveal, **options)


async def test_every_refused_login_is_in_the_log_at_once(container, pair):
    mark = container.mark()
    for count in range(1, 11):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(container.dsn, user="app_odd", password="guess")
        assert container.failed_logins(mark) == container.failed_logins(mark, username="app_odd") == count
    assert container.failed_logins(mark, username="app_even") == 0


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
async def test_it_restarts_on_the_same_port(container, pair, mode):
    port = container.port
    await container.halt(mode)
    assert "shut" in container.log_text() or mode == "immediate"
    with pytest.raises(OSError):
        await login(container, pair.odd)
    await container.resume()
    assert container.port == port
    await (await login(container, pair.odd)).close()


async def test_settings_are_changed_with_a_restart_where_one_is_needed(container):
    started = await container.fetchval("SELECT pg_postmaster_start_time()")
    await container.configure(work_mem="5MB", log_connections=True)
    assert await container.fetchval("SHOW work_mem") == "5MB"
    assert await container.fetchval("SELECT pg_postmaster_start_time()") == started
    await container.configure(work_mem=None, log_connections=None, max_connections=50)
    assert await container.fetchval("SHOW work_mem") == "4MB"
    assert await container.fetchval("SHOW max_connections") == "50"
    assert await container.fetchval("SELECT pg_postmaster_start_time()") > started
    with pytest.raises(ServerError, match="work_mem"):
        await container.configure(work_mem="much")


async def test_its_pg_hba_conf_is_replaced_and_the_superuser_always_gets_in(container, pair):
    await container.set_hba(["host all app_odd all reject"])
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await login(container, pair.odd)
    with pytest.raises(ServerError, match="rejected its configuration"):
        await container.set_hba(["nonsense"])
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await login(container, pair.odd)
    await container.set_hba(None)
    await (await login(container, pair.odd)).close()


async def test_it_speaks_tls_with_a_certificate_of_its_own_authority(container, pair):
    ca_file = await container.enable_tls()
    con = await login(container, pair.odd, ssl=ssl.create_default_context(cafile=ca_file))
    pid = con.get_server_pid()
    assert await container.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = $1", pid)
    await con.close()
    await container.configure(ssl=False)


def test_an_image_that_cannot_be_had_is_named(container):
    image = f"no-such-image-{secrets.token_hex(4)}"
    with pytest.raises(NotAvailable, match=image):
        server_of(f"testcontainers:{image}").start()


def test_a_port_that_another_container_has_is_passed_over(container, monkeypatch):
    from aiopqr.testing import container as module

    free, offers = module.free_port, [container.port]
    monkeypatch.setattr(module, "free_port", lambda host: offers.pop() if offers else free(host))
    with ContainerPostgres(container.image) as other:
        assert other.port != container.port
        assert run_apart(other.fetchval("SELECT 1")) == 1


def test_a_container_that_was_never_started_says_so():
    with pytest.raises(ServerError, match="not started"):
        ContainerPostgres("anything").log_text()
