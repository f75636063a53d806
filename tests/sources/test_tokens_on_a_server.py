"""Tokens against a real verifier: Debian's Postgres asks PAM, which asks a script that accepts a token for its time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.load import Load

import aiopqr
from aiopqr.sources import TokenSource
from aiopqr.testing import EmbeddedPostgres
from aiopqr.testing.errors import NotAvailable
from aiopqr.testing.server import run_apart

PROOF = bool(os.environ.get("AIOPQR_PROOF"))
PAM = Path("/etc/pam.d")
VERIFIER = """#!/bin/sh
token=$(tr -d '\\0')
[ "$(date +%s%3N)" -lt "${token#until-}" ]
"""


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    if os.geteuid() != 0 or not PAM.is_dir():
        pytest.skip("a PAM service can be added only by root")
    service = PAM / f"aiopqr-test-{os.getpid()}"
    with contextlib.ExitStack() as exits:
        try:
            server = exits.enter_context(EmbeddedPostgres("system", max_connections=60))
        except NotAvailable as exc:
            pytest.skip(str(exc))
        assert server.home
        script = server.home / "verify"
        script.write_text(VERIFIER)
        script.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        service.write_text(f"auth required pam_exec.so expose_authtok quiet {script}\naccount required pam_permit.so\n")
        exits.callback(service.unlink)
        run_apart(prepare(server, service.name))
        yield server


async def prepare(server: EmbeddedPostgres, service: str) -> None:
    await server.execute("create role by_token login")
    await server.enable_tls()
    await server.set_hba([f"hostssl all by_token all pam pamservice={service}", "host all all all scram-sha-256"])


class Issuer:
    """Issues tokens that are good for some seconds, and counts them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.issued = 0

    async def __call__(self) -> tuple[str, datetime]:
        self.issued += 1
        until = datetime.now(UTC) + timedelta(seconds=self.seconds)
        return f"until-{until.timestamp() * 1000:.0f}", until


@pytest.mark.proof
async def test_tokens_that_expire_all_the_time_cost_no_error(token_server: EmbeddedPostgres) -> None:
    issuer, seconds = Issuer(3.0), 60.0 if PROOF else 8.0
    dsn = token_server.dsn_of("postgres", sslmode="require")
    async with contextlib.AsyncExitStack() as exits:
        refresher = await exits.enter_async_context(aiopqr.Refresher(TokenSource("by_token", issuer)))
        pools = [
            await exits.enter_async_context(
                aiopqr.create_pool(dsn, credentials=refresher, min_size=1, max_size=3, max_lifetime=1.0)
            )
            for _ in range(8)
        ]
        loads = [Load(pool) for pool in pools]
        async with contextlib.AsyncExitStack() as running:
            for load in loads:
                await running.enter_async_context(load.running(3))
            begun = asyncio.get_running_loop().time()
            await asyncio.sleep(seconds)
            await asyncio.gather(*(load.serves(within=60) for load in loads))
            lasted = asyncio.get_running_loop().time() - begun
        for load in loads:
            assert load.unexpected == []
        assert refresher.stats().failed == 0
        assert lasted / 3.0 <= issuer.issued <= lasted / 1.2 + 2, "one fetch for each token, whatever the pools"
        assert sum(sum(a.refused for a in pool.stats().accounts.values()) for pool in pools) == 0
        assert all(pool.stats().replacements.done for pool in pools)


async def test_a_token_that_has_expired_is_refused_by_the_server_and_not_tried_by_us(
    token_server: EmbeddedPostgres,
) -> None:
    dsn = token_server.dsn_of("postgres", sslmode="require")
    past = (datetime.now(UTC) - timedelta(seconds=5)).timestamp() * 1000
    bad = aiopqr.CredentialPair.single(aiopqr.Credential("by_token", f"until-{past:.0f}"))
    async with aiopqr.Connector(dsn, credentials=bad) as connector:
        with pytest.raises(aiopqr.CredentialsRefused) as caught:
            await connector.connect(timeout=3)
        assert "PAM authentication failed" in str(caught.value.refusals["by_token"]), "as RDS says"
    mark = token_server.mark()
    async with aiopqr.Connector(dsn, credentials=TokenSource("by_token", Issuer(-5))) as connector:
        with pytest.raises(aiopqr.CredentialsExpired):
            await connector.connect(timeout=1)
    assert "PAM authentication failed" not in token_server.log_text(mark)
