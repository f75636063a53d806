"""One TLS context serves many logins, and is what asyncpg would have made."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import threading
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
from .test_hostile_servers import Peer, serving, settled


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


async def test_a_changed_environment_changes_the_context(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLROOTCERT", str(root))
    made, loop = TlsContexts(check_every=0.0), asyncio.get_running_loop()

    async def shared(**variables: str) -> ssl.SSLContext | None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        await made.shared({"host": "db"}, loop)  # looks, and may still return the previous one
        return await made.shared({"host": "db"}, loop)

    required = await shared(PGSSLMODE="require")
    assert required is not None
    assert not required.check_hostname
    verified = await shared(PGSSLMODE="verify-full")
    assert verified is not None
    assert verified.check_hostname
    newest = await shared(PGSSLMINPROTOCOLVERSION="TLSv1.3")
    assert newest is not None
    assert newest.minimum_version is ssl.TLSVersion.TLSv1_3
    assert await shared(PGSSLMODE="disable") is None


async def test_a_users_own_context_is_left_alone() -> None:
    own = ssl.create_default_context()
    assert await TlsContexts().shared({"host": "db", "ssl": own}, asyncio.get_running_loop()) is None


async def test_a_context_is_made_anew_when_a_file_has_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, loop = TlsContexts(check_every=0.0), asyncio.get_running_loop()
    first = await made.shared(verify_full(root), loop)
    assert await made.shared(verify_full(root), loop) is first
    trustme.CA().cert_pem.write_to_path(str(root))
    second = await made.shared(verify_full(root), loop)
    assert second is not first
    assert await made.shared(verify_full(root), loop) is second
    link, there = root.with_name("link.pem"), root.rename(root.with_name("there.pem"))  # as Kubernetes swaps a secret
    link.symlink_to(there)
    link.rename(root)
    assert await made.shared(verify_full(root), loop) is second
    trustme.CA().cert_pem.write_to_path(str(root.with_name("other.pem")))
    link.symlink_to(root.with_name("other.pem"))
    link.rename(root)
    assert await made.shared(verify_full(root), loop) not in (first, second)
    made.forget()
    assert await made.shared(verify_full(root), loop) not in (first, second)


async def test_files_are_looked_at_once_in_a_while(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, loop = TlsContexts(check_every=1000.0), asyncio.get_running_loop()
    first = await made.shared(verify_full(root), loop)
    trustme.CA().cert_pem.write_to_path(str(root))
    assert await made.shared(verify_full(root), loop) is first
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now + 1001.0)
    second = await made.shared(verify_full(root), loop)
    monkeypatch.undo()
    assert second is not first


@pytest.mark.parametrize("named", ["dsn", "environment", "service"])
async def test_every_place_that_names_a_file_counts(
    named: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = "postgresql://db/postgres?sslmode=verify-full"
    if named == "dsn":
        dsn += f"&sslrootcert={root}"
    elif named == "environment":
        monkeypatch.setenv("PGSSLROOTCERT", str(root))
    else:
        (tmp_path / "services").write_text(f"[mine]\nhost=db\nsslrootcert={root}\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        dsn += "&service=mine"
    made, loop = TlsContexts(check_every=0.0), asyncio.get_running_loop()
    first = await made.shared({"dsn": dsn}, loop)
    assert first is not None
    assert await made.shared({"dsn": dsn}, loop) is first
    trustme.CA().cert_pem.write_to_path(str(root))
    assert await made.shared({"dsn": dsn}, loop) is not first


async def test_files_that_hang_keep_the_timeout_and_stop_no_login_that_has_a_context(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    hung, calls = threading.Event(), 0
    current = module._current

    def hanging(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        assert hung.wait(20)
        return current(*args)

    made, loop = TlsContexts(check_every=0.0), asyncio.get_running_loop()
    monkeypatch.setattr(module, "_current", hanging)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await made.shared(verify_full(root), loop)
        with pytest.raises(TimeoutError):
            await login(
                asyncpg.connect, **verify_full(root), user="u", password=Secret("p"), cache=KeyCache(), timeout=0.1
            )
        hung.set()
        first = await made.shared(verify_full(root), loop)
        hung.clear()
        trustme.CA().cert_pem.write_to_path(str(root))
        for _ in range(3):
            assert await made.shared(verify_full(root), loop) is first
        assert calls == 3  # one look in flight, however many wait
    finally:
        hung.set()
    await asyncio.wait({made._making})
    assert await made.shared(verify_full(root), loop) is not first


@pytest.mark.parametrize("other", [None, "another host"])
async def test_a_context_that_is_forgotten_meanwhile_still_serves_a_login_that_waits_for_slow_files(
    other: str | None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    slow, current = threading.Event(), module._current
    made, loop = TlsContexts(check_every=0.0), asyncio.get_running_loop()
    first = await made.shared(verify_full(root), loop)
    monkeypatch.setattr(module, "_current", lambda *args: slow.wait(20) and current(*args))
    try:
        waiting = asyncio.create_task(made.shared(verify_full(root), loop))
        await asyncio.sleep(0)
        made.forget()
        others = [asyncio.create_task(made.shared({**verify_full(root), "host": other}, loop))] if other else []
        assert await waiting is first
    finally:
        slow.set()
    assert first not in await asyncio.gather(*others)


async def test_a_late_context_for_other_arguments_serves_only_the_login_that_asked_for_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    gates, current = {str(path): threading.Event() for path in (root, tmp_path / "other.pem")}, module._current

    def slow(arguments: Any, before: Any) -> Any:
        assert gates[arguments["dsn"].partition("sslrootcert=")[2]].wait(20)
        return current(arguments, before)

    monkeypatch.setattr(module, "_current", slow)
    made, loop = TlsContexts(), asyncio.get_running_loop()
    try:
        early = asyncio.create_task(made.shared(verify_full(root), loop))
        await asyncio.sleep(0)
        late = asyncio.create_task(made.shared(verify_full(tmp_path / "other.pem"), loop))
        await asyncio.sleep(0)
        gates[str(root)].set()
        context = await early
        third = asyncio.create_task(made.shared(verify_full(tmp_path / "other.pem"), loop))
        await asyncio.wait({third}, timeout=0.2)  # longer than a login with a context to fall back on waits
    finally:
        for gate in gates.values():
            gate.set()
    assert context is not await late
    assert await third is await late


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


def server_context(authority: trustme.CA, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    return context


@pytest.mark.parametrize("replaced", ["authority", "client certificate"])
async def test_replaced_files_cost_no_error(replaced: str, tmp_path: Path) -> None:
    """Not even before the files are looked at again. The refusal of a client's certificate is a lost connection."""
    authority, other = trustme.CA(), trustme.CA()
    contexts = [server_context(authority), server_context(other)]
    if replaced == "client certificate":
        contexts = [server_context(authority, authority), server_context(authority, other)]
    tls, root, client = contexts[0], tmp_path / "root.pem", tmp_path / "client.pem"
    authority.cert_pem.write_to_path(str(root))
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(client))
    client.chmod(0o600)

    async def behave(peer: Peer) -> None:
        await peer.startup()  # SSLRequest
        peer.send(b"S")
        await peer.writer.drain()
        await peer.writer.start_tls(tls)
        await peer.honest()

    cache = KeyCache()
    cache.contexts = TlsContexts(check_every=1000.0)
    async with serving(behave) as address:
        dsn = f"postgresql://127.0.0.1:{address['port']}/d?sslmode=verify-full&sslrootcert={root}"
        dsn += f"&sslcert={client}&sslkey={client}"

        async def enter() -> None:
            con = await login(asyncpg.connect, dsn, user="someone", password=Secret(PASSWORD), cache=cache)
            con.terminate()

        await enter()
        tls = contexts[1]
        with pytest.raises((ssl.SSLError, OSError, asyncpg.PostgresConnectionError)):
            await enter()  # the files have not changed yet
        tls = contexts[0]
        await enter()
        tls = contexts[1]
        if replaced == "authority":
            other.cert_pem.write_to_path(str(root))
        else:
            other.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(client))
        await enter()
        assert await settled()
