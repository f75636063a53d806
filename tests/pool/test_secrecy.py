"""No password can be found in logs, texts, tracebacks with their locals, or connections."""

from __future__ import annotations

import gc
import io
import logging
import traceback
from dataclasses import fields, is_dataclass, replace
from types import ModuleType

import asyncpg
import pytest

import aiopqr
from aiopqr.testing import RotatingPostgres

from .conftest import MakePool, eventually

CANARY = "canary-4711-"


def texts(thing: object, depth: int = 4) -> list[str]:
    """Everything that could be shown of an object and its parts."""
    found = [repr(thing), str(thing), format(thing)]
    if depth and is_dataclass(thing):
        for field in fields(thing):
            found += texts(getattr(thing, field.name), depth - 1)
    if isinstance(thing, BaseException):
        found += traceback.TracebackException.from_exception(thing, capture_locals=True).format()
    return found


def hunt(*things: object) -> None:
    for thing in things:
        for text in texts(thing):
            assert CANARY not in text


async def refuse(make_pool: MakePool, **options: object) -> BaseException:
    try:
        async with make_pool(timeout=0.3, **options) as pool:
            await pool.acquire()
    except Exception as exc:
        return exc
    raise AssertionError("nothing was refused")


async def test_nothing_shows_a_password(
    make_pool: MakePool, postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    events: list[object] = []
    await postgres.rotate("odd", password=CANARY + "odd")
    await postgres.rotate("even", password=CANARY + "even")
    async with make_pool(min_size=2, listeners=[events.append]) as pool:
        hunt(pool, pool.stats(), pool.pair, pool.connector, pool.connector.refresher, pool.connector.stats())
        async with pool.acquire() as con:
            hunt(con, *(getattr(con, name, None) for name in dir(con) if not name.startswith("__")))
        await postgres.rotate("odd", password=CANARY + "new")
        await pool.refresh()
        postgres.source.then(aiopqr.SourceError("the store is down"))
        with pytest.raises(aiopqr.SourceError):
            await pool.refresh()
        await pool.drain()
    hunt(*events)
    assert CANARY not in caplog.text


@pytest.mark.parametrize("scram_cache", [True, False])
async def test_a_refusals_error_holds_no_password(
    make_pool: MakePool, postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture, scram_cache: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = replace(
        postgres.pair,
        odd=aiopqr.Credential(postgres.usernames[0], CANARY + "odd"),
        even=aiopqr.Credential(postgres.usernames[1], CANARY + "even-ä"),
    )
    postgres.source.pair = wrong
    error = await refuse(make_pool, scram_cache=scram_cache)
    assert isinstance(error, aiopqr.CredentialsRefused)
    hunt(error, *error.refusals.values())
    link: BaseException | None = error
    while link := link.__cause__ or link.__context__:
        hunt(link)
    assert CANARY not in caplog.text


async def test_a_fatal_error_holds_no_password(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    await postgres.rotate("odd", password=CANARY + "odd")
    await postgres.rotate("even", password=CANARY + "even")
    dsn = postgres.dsn.rsplit("/", 1)[0] + "/no_such_database"
    error = await refuse(make_pool, dsn=dsn)
    assert isinstance(error, asyncpg.InvalidCatalogNameError)
    hunt(error)


async def test_no_object_that_a_connection_refers_to_holds_the_password(
    make_pool: MakePool, postgres: RotatingPostgres
) -> None:
    await postgres.rotate("odd", password=CANARY + "odd")
    await postgres.rotate("even", password=CANARY + "even")
    async with aiopqr.Connector(postgres.dsn, credentials=postgres.source, ssl="disable") as connector:
        con = await connector.connect()
        seen: set[int] = set()
        reached: list[object] = [con._params, con._addr, con._config, con._protocol]
        while reached and len(seen) < 20_000:
            thing = reached.pop()
            if id(thing) in seen or isinstance(thing, (type, ModuleType)):
                continue
            seen.add(id(thing))
            assert not (isinstance(thing, str) and CANARY in thing)
            if not callable(thing) and not isinstance(thing, aiopqr.Connector):
                reached += gc.get_referents(thing)
        await con.close()


async def test_the_stack_of_a_leak_shows_no_password(make_pool: MakePool, postgres: RotatingPostgres) -> None:
    await postgres.rotate("odd", password=CANARY + "odd")
    events: list[object] = []
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger("aiopqr").addHandler(handler)
    try:
        async with make_pool(leak_detection_threshold=0.01, listeners=[events.append]) as pool, pool.acquire():
            await eventually(lambda: events)
    finally:
        logging.getLogger("aiopqr").removeHandler(handler)
    assert "has not been released" in log.getvalue()
    assert CANARY not in log.getvalue()
