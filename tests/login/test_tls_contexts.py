"""One TLS context serves many logins, and is what asyncpg would have made."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trustme

from aiopqr._login import tls as module
from aiopqr._login.asyncpg_login import login
from aiopqr._login.keys import KeyCache
from aiopqr._login.tls import TlsContexts
from aiopqr.credentials import Secret

from .conftest import PASSWORD


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def verify_full(root: Path, port: int = 1) -> dict[str, Any]:
    return {"dsn": f"postgresql://127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert={root}"}


async def test_one_context_serves_the_same_arguments(root: Path) -> None:
    made, loop = TlsContexts(), asyncio.get_running_loop()
    first = await made.shared(verify_full(root), loop)
    assert first is not None
    assert first.check_hostname
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert await made.shared(verify_full(root), loop) is first
    assert await made.shared({"ssl": True, "host": "db"}, loop) is not first


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", False, None])
async def test_modes_that_are_no_context_alone_are_left_to_asyncpg(mode: Any) -> None:
    assert await TlsContexts().shared({"host": "db", "ssl": mode}, asyncio.get_running_loop()) is None


async def test_a_users_own_context_is_left_alone() -> None:
    own = ssl.create_default_context()
    assert await TlsContexts().shared({"host": "db", "ssl": own}, asyncio.get_running_loop()) is None


async def test_a_context_is_made_anew_when_it_is_old_or_forgotten(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, loop = TlsContexts(max_age=60.0), asyncio.get_running_loop()
    first = await made.shared(verify_full(root), loop)
    made.forget()
    second = await made.shared(verify_full(root), loop)
    assert second is not first
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now + 61.0)
    third = await made.shared(verify_full(root), loop)
    monkeypatch.undo()
    assert third is not second


async def test_a_waiter_that_is_cancelled_takes_the_context_from_nobody(root: Path) -> None:
    made, loop = TlsContexts(), asyncio.get_running_loop()
    tasks = [asyncio.create_task(made.shared(verify_full(root), loop)) for _ in range(2)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert isinstance(await tasks[1], ssl.SSLContext)


async def test_asyncpgs_own_error_is_raised_for_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await login(
            asyncpg.connect, **verify_full(tmp_path / "missing.pem"), user="u", password=Secret("p"), cache=KeyCache()
        )


async def test_an_asyncpg_that_parses_otherwise_makes_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module.connect_utils, "_parse_connect_dsn_and_args")
    assert await TlsContexts().shared(verify_full(root), asyncio.get_running_loop()) is None


async def test_a_replaced_authority_is_trusted_after_one_failure(tls_server: Any, root: Path) -> None:
    cache = KeyCache()

    async def enter() -> Any:
        given = verify_full(root, tls_server.port)
        return await login(asyncpg.connect, **given, user="by_scram", password=Secret(PASSWORD), cache=cache)

    with pytest.raises(ssl.SSLCertVerificationError):
        await enter()
    shutil.copy(tls_server.ca_file, root)
    con = await enter()
    assert con._transport.get_extra_info("ssl_object").context is con._params.ssl
    other = await enter()
    assert other._params.ssl is con._params.ssl
    for each in (con, other):
        await each.close()
