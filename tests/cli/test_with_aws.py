"""The operator's commands on AWS Secrets Manager: set up, checked, rotated, by the secret's name alone."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from aiopqr.testing import PostgresServer

moto = pytest.importorskip("moto.server", reason="moto is not installed")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
async def owner(server: PostgresServer) -> AsyncIterator[str]:
    owner = f"orders_{os.urandom(4).hex()}"
    await server.execute(f"CREATE ROLE {owner} NOLOGIN")
    yield owner
    await server.drop_accounts(f"{owner}_odd", f"{owner}_even", owner)


async def run(server: PostgresServer, endpoint: str, *arguments: str) -> tuple[int, Any, str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "AIOPQR", "AWS"))}
    aws = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiopqr", *arguments, "--json", "--region", "eu-west-1", "--endpoint-url", endpoint),
        env={**keep, **aws, "AIOPQR_ADMIN_PASSWORD": server.admin_password.reveal()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, json.loads(out) if out else None, err.decode()


async def test_a_secret_is_set_up_checked_and_rotated(server: PostgresServer, endpoint: str, owner: str) -> None:
    admin = server.dsn.replace("//", f"//{server.admin}@", 1)
    secret = ("--secret", owner)
    code, report, err = await run(server, endpoint, "setup", "--admin", admin, "--owner", owner, *secret)
    assert (code, len(report["changes"])) == (0, 6), err
    code, report, err = await run(server, endpoint, "setup", "--admin", admin, "--owner", owner, *secret)
    assert (code, report["changes"]) == (0, []), err

    code, report, err = await run(server, endpoint, "check", "--dsn", f"{server.dsn}?sslmode=disable", *secret)
    assert code == 0, err
    names = {finding["name"]: finding["level"] for finding in report["findings"]}
    assert (names["rotation spacing"], names["rotation schedule"]) == ("ok", "note")

    rotate = ("rotate", "--admin", admin, "--dsn", server.dsn, *secret)
    code, report, err = await run(server, endpoint, *rotate)
    assert (code, report["outcome"]) == (3, "refused"), err
    code, report, err = await run(
        server, endpoint, *rotate, "--max-lifetime=0", "--refresh-interval=0", "--margin=0", "--announce=0"
    )
    assert (code, report["outcome"]) == (0, "done"), err
    code, report, err = await run(server, endpoint, "check", "--dsn", f"{server.dsn}?sslmode=disable", *secret)
    assert code == 4  # the two changes were too close
    assert "two old passwords" in json.dumps(report)
