"""A pool in a Starlette or FastAPI application, without a web server: its lifespan, dependencies and health."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import fastapi
import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import aiopqr
from aiopqr.integrations.starlette import (
    PoolDependencies,
    connection,
    health_endpoint,
    pool_lifespan,
    pool_of,
    report,
    transaction,
)
from aiopqr.testing import RotatingPostgres

Con = Annotated[Any, Depends(connection, scope="function")]
Tx = Annotated[Any, Depends(transaction, scope="function")]


@asynccontextmanager
async def running(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """The application as a server runs it: its lifespan around it, the lifespan's state in each request."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(app=with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


def options(postgres: RotatingPostgres) -> dict[str, Any]:
    return {"credentials": postgres.source, "min_size": 1, "max_size": 2}


async def test_a_lifespan_opens_the_pool_and_closes_it(postgres: RotatingPostgres) -> None:
    async def one(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(await pool_of(request).fetchval("select 1")))

    app = Starlette(routes=[Route("/", one)], lifespan=pool_lifespan(postgres.dsn, **options(postgres)))
    async with running(app) as client:
        pool = app.state.pool
        assert (await client.get("/")).text == "1"
    assert pool.is_closing()
    assert not hasattr(app.state, "pool")


async def test_the_applications_own_lifespan_runs_inside_and_keeps_its_state(postgres: RotatingPostgres) -> None:
    seen: list[Any] = []

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        seen.append(await app.state.pool.fetchval("select 'up'"))
        yield {"greeting": "hello"}
        seen.append(await app.state.pool.fetchval("select 'down'"))

    async def greet(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.greeting)

    app = Starlette(routes=[Route("/", greet)], lifespan=pool_lifespan(postgres.dsn, lifespan=own, **options(postgres)))
    async with running(app) as client:
        assert (await client.get("/")).text == "hello"
    assert seen == ["up", "down"]


async def test_a_lifespan_that_fails_inside_closes_the_pool(postgres: RotatingPostgres) -> None:
    pools: list[aiopqr.AlternatingPool] = []

    def make() -> aiopqr.AlternatingPool:
        pools.append(aiopqr.create_pool(postgres.dsn, **options(postgres)))
        return pools[-1]

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no")
        yield

    app = Starlette(lifespan=pool_lifespan(make, lifespan=own))
    with pytest.raises(RuntimeError, match="no"):
        async with app.router.lifespan_context(app):
            pass
    assert pools[0].is_closing()


async def test_lifespans_nest_into_several_pools_under_their_own_keys(postgres: RotatingPostgres) -> None:
    replica = PoolDependencies("replica")

    async def names(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{pool_of(request).name} {replica.pool(request).name}")

    second = pool_lifespan(postgres.dsn, key="replica", name="second", **options(postgres))
    first = pool_lifespan(postgres.dsn, lifespan=second, name="first", **options(postgres))
    app = Starlette(routes=[Mount("/sub", app=Starlette(routes=[Route("/", names)]))], lifespan=first)
    async with running(app) as client:
        assert (await client.get("/sub/")).text == "first second"


def test_options_beside_a_function_are_refused_by_name() -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="max_size, min_size"):
        pool_lifespan(lambda: None, min_size=1, max_size=2)  # type: ignore[arg-type,return-value]


async def test_a_request_without_a_pool_is_told_what_to_do() -> None:
    request = Request({"type": "http", "app": Starlette()})
    with pytest.raises(aiopqr.ConfigurationError, match="lifespan=pool_lifespan"):
        pool_of(request)


@asynccontextmanager
async def api(postgres: RotatingPostgres) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    app = FastAPI(lifespan=pool_lifespan(postgres.dsn, **options(postgres)))
    async with running(app) as client:
        await app.state.pool.execute("create table notes (text text)")
        yield app, client


async def test_fastapi_injects_the_pool(postgres: RotatingPostgres) -> None:
    async with api(postgres) as (app, client):

        @app.get("/")
        async def one(pool: Annotated[aiopqr.AlternatingPool, Depends(pool_of)]) -> int:
            return await pool.fetchval("select 1")

        assert (await client.get("/")).json() == 1


async def test_fastapi_injects_a_connection_and_releases_it(postgres: RotatingPostgres) -> None:
    async with api(postgres) as (app, client):

        @app.get("/")
        async def in_use(con: Con) -> int:
            await con.fetchval("select 1")
            return app.state.pool.stats().in_use

        assert (await client.get("/")).json() == 1
        assert app.state.pool.stats().in_use == 0


async def test_fastapi_commits_a_transaction_before_it_answers(postgres: RotatingPostgres) -> None:
    async with api(postgres) as (app, client):

        @app.post("/")
        async def note(con: Tx) -> bool:
            await con.execute("insert into notes values ('kept')")
            return con.is_in_transaction()

        assert (await client.post("/")).json() is True
        assert await app.state.pool.fetchval("select count(*) from notes") == 1


async def test_fastapi_rolls_back_where_the_endpoint_raises(postgres: RotatingPostgres) -> None:
    async with api(postgres) as (app, client):

        @app.post("/")
        async def note(con: Tx) -> None:
            await con.execute("insert into notes values ('lost')")
            raise fastapi.HTTPException(409)

        assert (await client.post("/")).status_code == 409
        assert await app.state.pool.fetchval("select count(*) from notes") == 0
        assert app.state.pool.stats().in_use == 0


async def test_fastapi_tells_the_client_of_a_commit_that_failed(postgres: RotatingPostgres) -> None:
    async with api(postgres) as (app, client):
        await app.state.pool.execute("create table once (n int unique deferrable initially deferred)")

        @app.post("/")
        async def twice(con: Tx) -> None:
            await con.execute("insert into once values (1), (1)")  # refused on commit

        assert (await client.post("/")).status_code == 500


async def test_a_websocket_gets_a_connection_too(postgres: RotatingPostgres) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message.get("text"))

    async with api(postgres) as (app, _):

        @app.websocket("/")
        async def user(websocket: WebSocket, con: Con) -> None:
            await websocket.accept()
            await websocket.send_text(await con.fetchval("select session_user"))

        scope = {"type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
        await app(scope, receive, send)
    assert sent[1] in postgres.usernames


# Health.


async def test_health_is_200_and_shows_no_secret(postgres: RotatingPostgres) -> None:
    app = Starlette(
        routes=[Route("/health", health_endpoint())], lifespan=pool_lifespan(postgres.dsn, **options(postgres))
    )
    async with running(app) as client:
        answer = await client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["healthy"] is True
    assert answer.json()["refused"] == []
    assert (answer.json()["size"], answer.json()["max_size"]) == (1, 2)
    for credential in postgres.pair.credentials():
        assert credential.password.reveal() not in answer.text
        assert credential.username not in answer.text


async def test_health_names_a_refused_account_and_stays_200(postgres: RotatingPostgres) -> None:
    async with aiopqr.create_pool(postgres.dsn, min_size=0, max_size=4, credentials=postgres.source) as pool:
        await postgres.rotate("odd", store_delay=None)
        assert await pool.fetchval("select 1") == 1
        found = report(pool)
    assert found["healthy"] is True
    assert found["refused"] == ["odd"]


async def test_health_is_503_when_all_accounts_are_refused_though_connections_serve(postgres: RotatingPostgres) -> None:
    app = Starlette(
        routes=[Route("/health", health_endpoint())], lifespan=pool_lifespan(postgres.dsn, **options(postgres))
    )
    async with running(app) as client:
        pool = app.state.pool
        await postgres.rotate_both(store_delay=None)
        async with pool.acquire() as con:
            with pytest.raises(TimeoutError):
                await pool.acquire(timeout=0.5)
            assert await con.fetchval("select 1") == 1
            answer = await client.get("/health")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["all accounts are refused"]
    assert answer.json()["refused"] == ["odd", "even"]


async def test_health_is_503_when_the_pair_is_older_than_it_may_be(postgres: RotatingPostgres) -> None:
    async with aiopqr.create_pool(postgres.dsn, **options(postgres)) as pool:
        assert report(pool, 0.0)["reasons"] == ["the credentials have not been confirmed for too long"]
        assert report(pool, 60.0)["healthy"] is True


@pytest.mark.parametrize(("interval", "limit"), [(60.0, 300.0), (1.0, 60.0), (0.0, None)])
async def test_the_pair_may_be_five_refresh_intervals_old(
    postgres: RotatingPostgres, interval: float, limit: float | None
) -> None:
    async with aiopqr.create_pool(postgres.dsn, refresh_interval=interval, **options(postgres)) as pool:
        found = report(pool)
        assert found["max_pair_age"] == limit
        json.dumps(report(pool, math.inf), allow_nan=False)


async def test_health_is_503_where_no_pool_is_open() -> None:
    app = Starlette(routes=[Route("/health", health_endpoint())])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/health")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["the pool is not open: the lifespan has not run"])


async def test_where_the_lifespan_never_ran_the_error_says_how_to_run_it(postgres: RotatingPostgres) -> None:
    app = FastAPI(lifespan=pool_lifespan(postgres.dsn, **options(postgres)))

    @app.get("/")
    async def user(con: Con) -> str:
        return str(await con.fetchval("select session_user"))

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(aiopqr.ConfigurationError, match="lifespan never ran") as caught:
            await client.get("/")
        assert "with TestClient(app)" in str(caught.value)
        async with app.router.lifespan_context(app):  # as the error suggests
            assert (await client.get("/")).json() in postgres.usernames
