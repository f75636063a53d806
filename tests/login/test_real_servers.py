"""Logins to real servers, by every method that Postgres asks for, with no part of asyncpg replaced."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import sys
import types
from typing import Any

import asyncpg
import pytest
import uvloop

from aiopqr._login import asyncpg_login as module
from aiopqr._login import keys, scram
from aiopqr._login.asyncpg_login import login
from aiopqr._login.keys import KeyCache
from aiopqr._trust import Trust
from aiopqr.credentials import Credential, Secret

PASSWORD = "correct horse battery"


async def enter(server: Any, user: str, cache: KeyCache | None, password: str = PASSWORD, **kwargs: Any) -> Any:
    options = {**server.address, "ssl": "disable", "timeout": 20.0, "trust": Trust(plain_text_over_tcp=True), **kwargs}
    return await login(asyncpg.connect, user=user, password=Secret(password), cache=cache, **options)


async def user_of(con: asyncpg.Connection) -> Any:
    try:
        return await con.fetchval("select session_user")
    finally:
        await con.close()


@pytest.mark.parametrize("user", ["by_scram", "by_md5", "by_password", "by_trust"])
async def test_every_method_logs_in(server: Any, user: str) -> None:
    cache = KeyCache()
    assert await user_of(await enter(server, user, cache)) == user
    assert await user_of(await enter(server, user, cache)) == user
    assert len(cache) == (user == "by_scram")


async def test_keys_are_derived_once(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    derived: list[object] = []
    derive = scram.derive
    monkeypatch.setattr(keys, "derive", lambda *args: derived.append(args) or derive(*args))
    cache = KeyCache()
    cons = await asyncio.gather(*(enter(server, "by_scram", cache) for _ in range(4)))
    cons += [await enter(server, "by_scram", cache)]
    for con in cons:
        await con.close()
    assert len(derived) == 1


async def test_a_verifier_computed_here_is_accepted(server: Any) -> None:
    verifier = scram.verifier("made here", iterations=500)
    server.run(f"create role made_here login password '{verifier}'")
    try:
        stored = server.run("select rolpassword from pg_authid where rolname = 'made_here'")
        assert stored == verifier
        for cache in (KeyCache(), None):
            assert await user_of(await enter(server, "made_here", cache, "made here")) == "made_here"
    finally:
        server.run("drop role made_here")


@pytest.mark.parametrize("cache", [KeyCache(), None], ids=["answered", "plain"])
async def test_a_wrong_password_is_asyncpgs_error_with_all_fields(server: Any, cache: KeyCache | None) -> None:
    for user in ("by_scram", "by_md5", "by_password"):
        with pytest.raises(asyncpg.InvalidPasswordError) as caught:
            await enter(server, user, cache, "wrong")
        assert caught.value.sqlstate == "28P01"
        assert caught.value.server_source_function == "auth_failed"
        assert user in str(caught.value)
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError) as refused:
        await enter(server, "rejected", cache)
    assert refused.value.sqlstate == "28000"


async def test_a_refused_password_is_right_after_it_was_changed(server: Any) -> None:
    cache = KeyCache()
    server.run("create role changing login password 'one'")
    try:
        assert await user_of(await enter(server, "changing", cache, "one")) == "changing"
        server.run("alter role changing password 'two'")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await enter(server, "changing", cache, "one")
        assert await user_of(await enter(server, "changing", cache, "two")) == "changing"
        held = len(cache)
        cache.keep_only([Credential("changing", "two")])
        assert len(cache) < held
    finally:
        server.run("drop role changing")


# Words that a careless client gets wrong. asyncpg fails with the last one, libpq does not.
PASSWORDS = ["a,b=c", "'\"\\$@:/?#%&", " ", "\x01\x7f", "x" * 900, "pässwörd", "Ⅸ", "密码", "a\u00a0b", "a\u200bb"]


@pytest.mark.parametrize("password", PASSWORDS)
async def test_awkward_passwords_log_in(servers: Any, password: str) -> None:
    server = servers("16")
    server.run("create role awkward login password $awkward$" + password + "$awkward$")
    try:
        assert await user_of(await enter(server, "awkward", KeyCache(), password)) == "awkward"
    finally:
        server.run("drop role awkward")


@pytest.mark.parametrize("password", ["pässwörd", "Ⅸ", "a\u200bbé", "\u0627a\u0628", "é\x07", "\u00ad", "\u0221x"])
async def test_verifiers_are_prepared_as_the_server_prepares_them(servers: Any, password: str) -> None:
    server = servers("18")
    server.run("create role prepared login password $prepared$" + password + "$prepared$")
    try:
        stored = server.run("select rolpassword from pg_authid where rolname = 'prepared'")
        salt = stored.split("$")[1].split(":")[1]
        assert scram.verifier(password, salt=scram._unb64(salt.encode(), "salt")) == stored
    finally:
        server.run("drop role prepared")


async def test_a_unix_socket_logs_in(server: Any) -> None:
    cache = KeyCache()
    con = await enter(server, "by_scram", cache, host=str(server.folder))
    assert await user_of(con) == "by_scram"
    assert len(cache) == 1


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-full", "context"])
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_every_tls_mode_logs_in(tls_server: Any, mode: str, runner: Any) -> None:
    options: dict[str, Any] = {"ssl": mode}
    if mode == "context":
        options = {"ssl": tls_server.tls}
    elif mode == "verify-full":
        dsn = f"postgresql://127.0.0.1:{tls_server.port}/postgres?sslmode=verify-full&sslrootcert={tls_server.ca_file}"
        options = {"dsn": dsn, "ssl": None, "host": None, "port": None, "database": None}

    async def main() -> None:
        # The refusal comes first: its TLS shutdown, which asyncpg does not await, needs the loop for a while.
        with pytest.raises(asyncpg.InvalidPasswordError):
            await enter(tls_server, "by_scram", KeyCache(), "wrong", **options)
        cache = KeyCache()
        for _ in range(2):
            con = await enter(tls_server, "by_scram", cache, **options)
            assert (con._transport.get_extra_info("ssl_object") is not None) == (mode not in ("disable", "allow"))
            assert con._transport.get_protocol() is con._protocol
            assert await user_of(con) == "by_scram"
        assert len(cache) == 1

    runner(main())


@pytest.mark.parametrize("mode", ["prefer", "allow"])
@pytest.mark.parametrize("version", ["16", "18"])
async def test_a_server_without_tls_is_answered_after_it_declined(servers: Any, version: str, mode: str) -> None:
    cache = KeyCache()
    assert await user_of(await enter(servers(version), "by_scram", cache, ssl=mode)) == "by_scram"
    assert len(cache) == 1


async def test_the_second_attempt_of_allow_is_answered_too(tls_server: Any) -> None:
    cache = KeyCache()
    con = await enter(tls_server, "only_tls", cache, ssl="allow")
    assert con._transport.get_extra_info("ssl_object") is not None
    assert await user_of(con) == "only_tls"
    assert len(cache) == 1


async def test_a_certificate_of_another_authority_is_refused(tls_server: Any) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        await enter(tls_server, "by_scram", KeyCache(), ssl=ssl.create_default_context())


async def test_several_hosts_are_tried_in_order(server: Any) -> None:
    con = await enter(
        server, "by_scram", KeyCache(), host=["127.0.0.1", "127.0.0.1"], port=[1, server.port],
        target_session_attrs="primary",
    )  # fmt: skip
    assert await user_of(con) == "by_scram"


def reachable(con: Any, loop: asyncio.AbstractEventLoop) -> list[object]:
    """Everything that can be reached from a connection, except through the loop and through code."""
    stops = (type, types.ModuleType, types.FunctionType, types.FrameType, types.CodeType, types.BuiltinFunctionType)
    seen: dict[int, object] = {}
    queue: list[object] = [con]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, stops) or item is loop or item is sys.modules:
            continue
        seen[id(item)] = item
        queue.extend(gc.get_referents(item))
    return list(seen.values())


@pytest.mark.parametrize("user", ["by_scram", "by_md5", "by_password"])
async def test_no_password_is_reachable_from_a_connection(tls_server: Any, user: str) -> None:
    cache = KeyCache()
    loop = asyncio.get_running_loop()
    for mode in ("disable", "require"):
        con = await enter(tls_server, user, cache, ssl=mode)
        found = reachable(con, loop)
        assert con._protocol in found
        assert not any(isinstance(item, str) and PASSWORD in item for item in found)
        assert not any(isinstance(item, Secret | scram.Keys | KeyCache) for item in found)
        await con.close()


async def test_the_plain_path_leaves_no_password_in_the_parameters(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_works", False)
    con = await enter(server, "by_scram", None)
    assert PASSWORD not in repr(con._params)
    with pytest.raises(asyncpg.InterfaceError):
        con._params.password()
    await con.close()


async def test_the_connection_has_the_real_loop(tls_server: Any) -> None:
    loop = asyncio.get_running_loop()
    for mode in ("disable", "prefer"):
        con = await enter(tls_server, "by_scram", KeyCache(), ssl=mode)
        assert con._loop is loop
        assert con._stmt_cache._loop is loop
        assert con._transport.get_protocol() is con._protocol
        await con.close()


@pytest.mark.proof
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_query_timeouts_by_the_thousand_leave_nothing(tls_server: Any, runner: Any) -> None:
    count = 1000 if os.environ.get("AIOPQR_PROOF") else 100

    async def main() -> None:
        con = await enter(tls_server, "by_scram", KeyCache())
        assert asyncio.current_task(con._loop) is asyncio.current_task()
        statement = await con.prepare("select pg_sleep(5)")
        for _ in range(count):
            with pytest.raises(TimeoutError):
                await statement.fetch(timeout=0.0005)
            await con.execute("select 1")  # the cancellation is over
        assert not con._cancellations
        await con.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    runner(main())


async def test_copy_listen_and_cancel_work_on_an_answered_connection(tls_server: Any) -> None:
    con = await enter(tls_server, "by_scram", KeyCache(), ssl="require")
    heard: asyncio.Queue[object] = asyncio.Queue()
    await con.add_listener("news", lambda *args: heard.put_nowait(args[-1]))
    await con.execute("notify news, 'x'")
    assert await heard.get() == "x"
    task = asyncio.create_task(con.execute("select pg_sleep(30)"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    rows: list[bytes] = []

    async def collect(data: bytes) -> None:
        rows.append(data)

    await con.copy_from_query("select generate_series(1, 20000)", output=collect)
    assert b"".join(rows).count(b"\n") == 20000
    await con.close()


async def test_a_connect_of_the_users_own_gets_the_user_and_a_password_that_works(server: Any) -> None:
    calls: list[dict[str, Any]] = []

    async def connect(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return await asyncpg.connect(*args, **kwargs)

    con = await login(connect, **server.address, user="by_scram", password=Secret(PASSWORD), cache=KeyCache())
    assert await user_of(con) == "by_scram"
    assert calls[0]["user"] == "by_scram"
    assert calls[0]["loop"] is asyncio.get_running_loop()


async def test_an_asyncpg_that_cannot_be_answered_for_logs_in_plainly(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol is no longer recognised: the placeholder is refused, and the login is repeated without it."""
    monkeypatch.setattr(module, "_works", True)
    monkeypatch.setattr(module, "AsyncpgProtocol", type("Other", (), {}))
    cache = KeyCache()
    assert await user_of(await enter(server, "by_scram", cache)) == "by_scram"
    assert len(cache) == 0
