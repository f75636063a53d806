"""A FastAPI service whose database passwords change while it serves.

    python examples/fastapi_app.py                                                  # a demonstration that ends
    DATABASE_URL=postgresql://... CREDENTIALS_FILE=... uvicorn fastapi_app:app      # as a service

The first half is the service. The rest starts a Postgres and the service, changes passwords while it serves requests,
and exits. Needs: pip install 'aiopqr[fastapi,testing]' uvicorn
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI, HTTPException

import aiopqr
from aiopqr.integrations.starlette import connection, health_endpoint, pool_lifespan, transaction
from aiopqr.sources import FileSource

# With scope="function", the connection is released, and the transaction committed, before the client has its response.
Connection = Annotated[asyncpg.Connection, Depends(connection, scope="function")]
Transaction = Annotated[asyncpg.Connection, Depends(transaction, scope="function")]


def make_pool() -> aiopqr.AlternatingPool:
    """CREDENTIALS_FILE has the keys odd_username, odd_password, even_username, even_password and active_credential."""
    return aiopqr.create_pool(
        os.environ["DATABASE_URL"],
        credentials=FileSource(os.environ["CREDENTIALS_FILE"]),
        min_size=2,
        max_size=10,
        max_lifetime=float(os.environ.get("MAX_LIFETIME", "1800")),
    )


app = FastAPI(lifespan=pool_lifespan(make_pool))
app.add_route("/health", health_endpoint())


@app.get("/whoami")
async def whoami(con: Connection, pause: float = 0.0) -> str:
    """The account that serves this request."""
    user: str = await con.fetchval("select session_user from pg_sleep($1)", pause)
    return user


@app.post("/transfer")
async def transfer(amount: int, con: Transaction) -> dict[str, Any]:
    """An exception here rolls the transaction back."""
    if amount <= 0:
        raise HTTPException(422, "amount must be positive")
    return {"amount": amount, "transaction": await con.fetchval("select pg_current_xact_id()::text")}


# The rest is a demonstration: a database with two accounts, whose passwords change.


async def show() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedPostgres() as server:
            database = await RotatingPostgres.create(server)
            secret = Path(folder) / "pair.json"
            write(secret, database.pair)
            os.environ |= {"DATABASE_URL": database.dsn, "CREDENTIALS_FILE": str(secret), "MAX_LIFETIME": "1"}
            listening = socket.create_server(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            service = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
            serving = asyncio.create_task(service.serve(sockets=[listening]), name="service")

            async def get(path: str) -> Any:
                with await asyncio.to_thread(urllib.request.urlopen, url + path) as answer:
                    return json.load(answer)

            served: Counter[str] = Counter()
            for account in ("odd", "even", "odd"):
                write(secret, await database.rotate(account))
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    served.update(await asyncio.gather(*(get("/whoami?pause=0.01") for _ in range(4))))
            print("3 passwords changed, no request failed:", dict(served))
            print("health:", await get("/health"))
            service.should_exit = True
            await serving


def write(path: Path, pair: aiopqr.CredentialPair) -> None:
    """Replace the file in one step, so that nobody reads half of it."""
    keys = {"active_credential": str(pair.active)}
    for name, account in (("odd", pair.odd), ("even", pair.even)):
        assert account is not None
        keys |= {f"{name}_username": account.username, f"{name}_password": account.password.reveal()}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(keys))
    new.replace(path)


if __name__ == "__main__":
    import uvicorn

    from aiopqr.testing import EmbeddedPostgres, RotatingPostgres

    asyncio.run(show())
