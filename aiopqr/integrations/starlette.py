"""A pool in a Starlette or FastAPI application: a lifespan, dependencies for its connections, a health endpoint.

The dependencies are plain callables, so they work without FastAPI too.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

from .._pool import AlternatingPool, create_pool
from ..credentials import Parity
from ..errors import ConfigurationError, MissingExtra
from ..options import non_negative, optional_timeout

try:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import JSONResponse
except ImportError as exc:
    raise MissingExtra("aiopqr.integrations.starlette", "starlette") from exc

__all__ = [
    "PoolDependencies",
    "connection",
    "health_endpoint",
    "pool_lifespan",
    "pool_of",
    "report",
    "transaction",
]

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
PoolLifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]

LONGEST_SILENCE = 5  # refresh intervals without a confirmed pair until a pool counts as unhealthy
LEAST_PAIR_AGE = 60.0


def pool_lifespan(
    pool: str | Callable[[], AlternatingPool] | None = None,
    *,
    lifespan: Lifespan | None = None,
    key: str = "pool",
    close_timeout: float | None = 10.0,
    **options: Any,
) -> PoolLifespan:
    """Make a lifespan that opens a pool before the application starts, and closes it after the last request.

    ``pool`` is a function that makes the pool, or a DSN, passed to :func:`aiopqr.create_pool` with ``options``.
    The pool is ``request.state.pool`` and ``app.state.pool``; ``key`` gives it another name. ``lifespan`` is the
    application's own lifespan. It runs while the pool is open, may use ``app.state.pool``, and may yield its own state.

    On shutdown, connections that are still in use after ``close_timeout`` seconds (default: 10) are terminated; None
    waits for them. Starting raises what opening a pool raises.
    """
    if callable(pool):
        if options:
            raise ConfigurationError(f"pool is a function, so pass these options in it: {', '.join(sorted(options))}")
        make = pool
    else:
        make = _maker(pool, options)
    optional_timeout("close_timeout", close_timeout)

    @asynccontextmanager
    async def run(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            opened = await make()
            stack.push_async_callback(opened.close, timeout=close_timeout)
            setattr(app.state, key, opened)
            stack.callback(delattr, app.state, key)
            inner = await stack.enter_async_context(lifespan(app)) if lifespan else None
            yield {**(inner or {}), key: opened}

    return run


def _maker(dsn: str | None, options: dict[str, Any]) -> Callable[[], AlternatingPool]:
    return lambda: create_pool(dsn, **options)


class PoolDependencies:
    """Gives requests and websockets the pool that a lifespan opened under ``key``, and its connections.

    The methods are for ``fastapi.Depends``; :meth:`pool` can be called with any request. For the default key they are
    this module's ``pool_of``, ``connection`` and ``transaction``.
    """

    def __init__(self, key: str = "pool") -> None:
        self.key = key

    def pool(self, connection: HTTPConnection) -> AlternatingPool:
        """The pool. Raises :class:`ConfigurationError` if no lifespan has opened it."""
        app = connection.scope.get("app")
        for state in (connection.state, getattr(app, "state", None)):
            found = getattr(state, self.key, None)
            if isinstance(found, AlternatingPool):
                return found
        raise ConfigurationError(
            f"no pool {self.key!r} is open: the application's lifespan never ran, or it opens no such pool. Give the "
            "application lifespan=pool_lifespan(...). In tests the lifespan runs in `with TestClient(app) as client:` "
            "and, for httpx's ASGITransport, in `async with app.router.lifespan_context(app):`"
        )

    async def connection(self, connection: HTTPConnection) -> AsyncIterator[Any]:
        """A connection, which is released when the request is done with it.

        FastAPI releases it after sending the response; with ``Depends(connection, scope="function")``, before that.
        Raises what ``acquire()`` raises.
        """
        async with self.pool(connection).acquire() as con:
            yield con

    async def transaction(self, connection: HTTPConnection) -> AsyncIterator[Any]:
        """A connection in a transaction, which is rolled back if the endpoint raises, and committed otherwise.

        With FastAPI, write ``Depends(transaction, scope="function")``. Without the scope, it commits after the response
        was sent, so a client may see a success that then fails to commit.
        """
        async with self.pool(connection).acquire() as con, con.transaction():
            yield con


_usual = PoolDependencies()
pool_of = _usual.pool
connection = _usual.connection
transaction = _usual.transaction


def health_endpoint(
    pool: Callable[[HTTPConnection], AlternatingPool] = pool_of, *, max_pair_age: float | None = None
) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Make an endpoint that returns 200 while the pool is healthy, and otherwise 503 with the ``reasons``.

    The pool is unhealthy if all accounts are refused, if no fetch has confirmed the credentials for ``max_pair_age``
    seconds (default: five refresh intervals, but at least 60 s; ``math.inf`` turns this off), or if it is closing. The
    endpoint runs no query, and its response mentions neither users nor servers.

    It returns 503 before users notice anything, because open connections keep working. So use it for an alert, never
    as a liveness probe: a restarted process would have no open connections.
    """
    if max_pair_age is not None and max_pair_age != math.inf:
        non_negative("max_pair_age", max_pair_age)

    async def health(request: Request) -> JSONResponse:
        try:
            found = pool(request)
        except ConfigurationError:
            return JSONResponse({"healthy": False, "reasons": ["the pool is not open: the lifespan has not run"]}, 503)
        body = report(found, max_pair_age)
        return JSONResponse(body, 200 if body["healthy"] else 503)

    return health


def report(pool: AlternatingPool, max_pair_age: float | None = None) -> dict[str, Any]:
    """The response of :func:`health_endpoint`, as a dictionary. Call this on the pool's event loop."""
    stats = pool.stats()
    if max_pair_age is None:
        interval = pool.connector.refresher.interval
        max_pair_age = max(LONGEST_SILENCE * interval, LEAST_PAIR_AGE) if interval else math.inf
    age = stats.refresh.pair_age or 0.0
    reasons = []
    if pool.is_closing():
        reasons.append("the pool is closing")
    if stats.all_refused:
        reasons.append("all accounts are refused")
    if age > max_pair_age:
        reasons.append("the credentials have not been confirmed for too long")
    return {
        "healthy": not reasons,
        "reasons": reasons,
        "pool": stats.name,
        "refused": [str(parity) for parity in Parity if stats.accounts[parity].refused_for is not None],
        "degraded": stats.degraded,
        "pair_age": round(age, 3),
        "max_pair_age": None if max_pair_age == math.inf else max_pair_age,
        "refresh_failures": stats.refresh.failures_in_a_row,
        "size": stats.size,
        "idle": stats.idle,
        "in_use": stats.in_use,
        "waiting": stats.waiting,
        "max_size": stats.max_size,
    }
