"""Refusals over TLS, where asyncpg may log in twice. On a server that speaks TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiopqr._login.keys
from aiopqr.refusals import Verdict, classify
from aiopqr.rotation.sql import identifier
from aiopqr.testing import EmbeddedPostgres, PostgresServer, RotatingPostgres
from aiopqr.testing.server import run_apart
from aiopqr.testing.tls import write_certificates

from .conftest import MakePool, error_of_login, hold


@pytest.fixture(scope="session")
def aiopqr_server() -> Iterator[PostgresServer]:
    with EmbeddedPostgres("system") as server:
        run_apart(server.enable_tls())
        yield server


@pytest.fixture
def tls_pool(make_pool: MakePool, postgres: RotatingPostgres) -> Callable[..., Any]:
    """``tls_pool("require")``: a pool with that sslmode; None leaves it out, as most DSNs do."""

    def make(mode: str | None, *, ca: str | None = None, **options: Any) -> Any:
        parameters = {"sslmode": mode} if mode else {}
        if mode and mode.startswith("verify"):
            parameters["sslrootcert"] = ca or str(postgres.server.ca_file)
        dsn = postgres.server.dsn_of(postgres.database, **parameters)
        return make_pool(dsn=dsn, ssl=None, **options)

    return make


@pytest.mark.parametrize("mode", ["require", "verify-full"])
async def test_a_refusal_over_tls_falls_back_and_costs_one_failed_login(
    mode: str, tls_pool: Any, postgres: RotatingPostgres
) -> None:
    await postgres.rotate("odd", store_delay=None)
    async with tls_pool(mode) as pool:
        assert await hold(pool, 4) == [postgres.usernames[1]] * 4
        async with pool.acquire() as con:
            assert con._transport.get_extra_info("ssl_object") is not None
    assert postgres.failed_logins() == 1


async def test_the_keys_are_derived_once_for_each_account_under_tls(
    tls_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    derive, derived = aiopqr._login.keys._derive, []
    monkeypatch.setattr("aiopqr._login.keys._derive", lambda *args: (derived.append(args[0]), derive(*args))[1])
    async with tls_pool("verify-full", max_size=8) as pool:
        await hold(pool, 8)
    assert len(derived) == 2


@pytest.mark.parametrize("mode", ["prefer", "allow", None])
async def test_a_refusal_that_is_logged_in_twice_is_still_one_and_warned_of_once(
    mode: str | None, tls_pool: Any, postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    await postgres.rotate_both(store_delay=0.2)
    async with tls_pool(mode, refresh_interval=0) as pool:
        assert await pool.fetchval("select 1") == 1
        stats = pool.stats()
    assert (stats.accounts["odd"].refused, stats.accounts["even"].refused) == (1, 1)
    assert postgres.failed_logins() == 4
    assert caplog.text.count("asyncpg repeats a refused login") == 1


@pytest.mark.parametrize(("what", "verdict"), [("NOLOGIN", Verdict.ACCOUNT), ("PASSWORD NULL", Verdict.CREDENTIAL)])
async def test_a_refusal_is_known_where_the_second_login_meets_pg_hba(
    what: str, verdict: Verdict, tls_pool: Any, postgres: RotatingPostgres
) -> None:
    await postgres.server.execute(f"ALTER ROLE {identifier(postgres.usernames[0])} {what}")
    await postgres.server.set_hba(["hostssl all all all scram-sha-256"])
    try:
        exc = await error_of_login(postgres.dsn, postgres.pair.odd, ssl="prefer")
        assert classify(exc) is verdict
        async with tls_pool("prefer") as pool:
            assert await hold(pool, 4) == [postgres.usernames[1]] * 4
            assert pool.stats().accounts["odd"].refused == 1
    finally:
        await postgres.server.set_hba(None)


async def test_a_certificate_of_a_stranger_is_a_mistake_and_no_refusal(
    tls_pool: Any, postgres: RotatingPostgres, tmp_path: Path
) -> None:
    stranger = write_certificates(tmp_path)
    mark = postgres.server.mark()
    async with tls_pool("verify-full", ca=stranger.ca) as pool:
        async with asyncio.timeout(5):
            with pytest.raises(ssl.SSLCertVerificationError):
                await pool.acquire()
        assert pool.stats().accounts["odd"].refused == 0
    assert "authentication failed" not in postgres.server.log_text(mark)


async def test_a_server_that_speaks_no_tls_any_more_is_a_mistake_and_no_outage(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    async with (
        EmbeddedPostgres() as plain,
        make_pool(dsn=plain.dsn_of("postgres", sslmode="require"), ssl=None) as pool,
    ):
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionError, match="rejected SSL upgrade"):
                await pool.acquire()
