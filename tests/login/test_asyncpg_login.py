"""The login without a server: what is assumed of asyncpg, the keys' cache, and when asyncpg logs in by itself."""

from __future__ import annotations

import asyncio
import gc
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvloop
from asyncpg.connection import _StatementCache

from aiopqr._login import asyncpg_login as module
from aiopqr._login import keys, scram, self_test
from aiopqr._login.asyncpg_login import login
from aiopqr._login.keys import KeyCache
from aiopqr._trust import Trust
from aiopqr.credentials import Credential, Secret
from aiopqr.errors import ConfigurationError

CHALLENGE = scram.Challenge(b"salt", 1)


def run_self_test() -> Any:
    return self_test.run_self_test(module.answered, module._LoginLoop)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_the_self_test_succeeds_with_the_installed_asyncpg(runner: Any) -> None:
    runner(run_self_test())


def test_asyncpg_stores_the_loop_where_it_is_put_back() -> None:
    assert "_loop" in asyncpg.Connection.__slots__
    assert "_stmt_cache" in asyncpg.Connection.__slots__
    assert "_loop" in _StatementCache.__slots__


async def test_only_the_protocol_keeps_the_view_and_the_view_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a new asyncpg stored the loop anywhere else, that would show here."""
    views: list[Any] = []
    put_back = module._return_to

    def look(loop: Any, con: Any) -> None:
        put_back(loop, con)
        view = next(item for item in gc.get_referents(con._protocol) if isinstance(item, module._LoginLoop))
        views.append(view)
        holders = [item for item in gc.get_referrers(view) if type(item).__module__.startswith("asyncpg")]
        assert holders == [con._protocol]

    monkeypatch.setattr(module, "_return_to", look)
    await run_self_test()
    assert len(views) == 2
    assert all(view._claim.keys is view._upgraded is None for view in views)


BROKEN = {
    "another protocol": ("AsyncpgProtocol", int),
    "the loop is stored elsewhere": ("_return_to", lambda loop, con: None),
    "a connection with other attributes": ("_return_to", lambda loop, con: setattr(con, "_event_loop", loop)),
    "nothing steps in": ("_LoginLoop.step_in", lambda self: None),
    "no way past the agents": ("connect_utils.__connect_addr", None),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_unexpected_asyncpg_turns_it_off_with_one_warning(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    where, what = BROKEN[name]
    place = self_test if where.startswith("connect_utils") else module
    monkeypatch.setattr(f"{place.__name__}.{where}", what)
    monkeypatch.setattr(module, "_works", None)
    assert not await module._asyncpg_works()
    assert not await module._asyncpg_works()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


class Spy:
    """Replaces `asyncpg.connect`, and records what it was called with."""

    def __init__(self) -> None:
        self.password: Any = None
        self.seen: str | None = None

    async def __call__(self, *args: Any, password: Any, **kwargs: Any) -> Any:
        self.password = password
        self.seen = password() if callable(password) else password
        raise ConnectionRefusedError

    async def enter(self, password: str, cache: KeyCache | None) -> str | None:
        with pytest.raises(ConnectionRefusedError):
            await login(self, user="u", password=Secret(password), cache=cache)
        return self.seen


@pytest.mark.parametrize("cache", [KeyCache(), None], ids=["cache", "no cache"])
@pytest.mark.parametrize("password", ["hunter2", "hünter2"])
async def test_asyncpg_sees_no_password(password: str, cache: KeyCache | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_works", True)
    monkeypatch.setattr(asyncpg, "connect", spy := Spy())
    assert await spy.enter(password, cache) == module._PLACEHOLDER


async def test_an_asyncpg_that_is_not_as_expected_logs_in_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_works", False)
    monkeypatch.setattr(asyncpg, "connect", spy := Spy())
    assert await spy.enter("hunter2", KeyCache()) == "hunter2"
    assert "hunter2" not in repr(spy.password)
    with pytest.raises(asyncpg.InterfaceError, match="over"):
        spy.password()


STRICT = [Trust.parse("scram-sha-256"), Trust.parse("!none"), Trust.parse(channel_binding="require")]


@pytest.mark.parametrize("trust", STRICT, ids=["allowed", "forbidden", "bound"])
@pytest.mark.parametrize("own", [True, False], ids=["connect of the user's own", "unexpected asyncpg"])
async def test_what_cannot_be_enforced_is_an_error(trust: Trust, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_works", False)
    spy = Spy()
    if not own:
        monkeypatch.setattr(asyncpg, "connect", spy)
    with pytest.raises(ConfigurationError, match="cannot be enforced"):
        await login(spy, user="u", password=Secret("hunter2"), trust=trust)
    assert spy.password is None


async def test_a_users_own_connect_always_gets_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_works", True)
    assert await Spy().enter("hunter2", KeyCache()) == "hunter2"


async def derived(cache: KeyCache, password: str, challenge: scram.Challenge = CHALLENGE) -> scram.Keys:
    """The keys of a challenge that the cache does not know yet."""
    entry = cache.keys(Secret(password), challenge, asyncio.get_running_loop())
    assert isinstance(entry, asyncio.Future)
    return await entry


async def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path}/.s.PGSQL.5433")):
        await login(
            asyncpg.connect, host=str(tmp_path), port=5433, user="app_odd", password=Secret("x"), database="app"
        )


async def test_a_known_challenge_is_answered_at_once() -> None:
    cache, loop = KeyCache(), asyncio.get_running_loop()
    first = cache.keys(Secret("x"), CHALLENGE, loop)
    assert isinstance(first, asyncio.Future)
    assert cache.keys(Secret("x"), CHALLENGE, loop) is first
    await first
    assert cache.keys(Secret("x"), CHALLENGE, loop) == scram.derive("x", b"salt", 1)


@pytest.mark.parametrize(
    ("password", "challenge"),
    [("y", CHALLENGE), ("x", scram.Challenge(b"tlas", 1)), ("x", scram.Challenge(b"salt", 2))],
)
async def test_keys_belong_to_password_salt_and_iterations(password: str, challenge: scram.Challenge) -> None:
    cache = KeyCache()
    await derived(cache, "x")
    assert await derived(cache, password, challenge) == scram.derive(password, challenge.salt, challenge.iterations)


async def test_only_passwords_in_use_are_kept() -> None:
    cache, loop = KeyCache(), asyncio.get_running_loop()
    for password in ("odd", "even"):
        await derived(cache, password)
    cache.keep_only([Credential("app_even", "even"), Credential("app_odd", "newer")])
    assert isinstance(cache.keys(Secret("even"), CHALLENGE, loop), scram.Keys)
    await derived(cache, "odd")  # by a login that began before it was replaced
    await derived(cache, "newer")
    assert len(cache) == 2


async def test_a_password_that_leaves_while_its_keys_are_derived_is_not_kept() -> None:
    cache = KeyCache()
    entry = cache.keys(Secret("odd"), CHALLENGE, asyncio.get_running_loop())
    cache.keep_only([Credential("app_even", "even")])
    assert await entry == scram.derive("odd", b"salt", 1)  # type: ignore[misc]
    assert len(cache) == 0


async def test_a_failed_derivation_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KeyCache()
    monkeypatch.setattr(keys, "derive", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await derived(cache, "x")
    assert len(cache) == 0


async def test_a_server_with_ever_new_salts_fills_no_memory() -> None:
    cache, loop = KeyCache(limit=4), asyncio.get_running_loop()
    for number in range(20):
        await derived(cache, "x", scram.Challenge(bytes([number]), 1))
    assert len(cache) == 4
    assert isinstance(cache.keys(Secret("x"), scram.Challenge(bytes([19]), 1), loop), scram.Keys)


def test_a_derivation_left_by_a_dead_loop_is_begun_again() -> None:
    cache = KeyCache()
    dead = asyncio.new_event_loop()
    cache._entries[Secret("x"), CHALLENGE] = dead.create_future()
    dead.close()

    async def main() -> scram.Keys:
        entry = cache.keys(Secret("x"), CHALLENGE, asyncio.get_running_loop())
        assert isinstance(entry, asyncio.Future)
        return await entry

    assert asyncio.run(main()) == scram.derive("x", b"salt", 1)


async def test_a_cache_shows_nothing() -> None:
    cache = KeyCache()
    await derived(cache, "hunter2")
    assert "hunter2" not in repr(cache)
    assert "hunter2" not in repr(vars(cache))
    assert repr(scram.derive("hunter2", b"salt", 1).client) not in repr(vars(cache))
