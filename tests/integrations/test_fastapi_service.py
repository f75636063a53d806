"""The FastAPI example as a service: a real uvicorn, real requests, changed passwords, and SIGTERM in mid-request."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from aiopqr.testing import RotatingPostgres

from .secret_file import write_secret

EXAMPLES = Path(__file__).parents[2] / "examples"
ROTATIONS = 30 if os.environ.get("AIOPQR_PROOF") else 4
WORKERS = 8

# uvicorn raises the signal again once it has shut down. It is ignored here, as by process 1 in a container. So the
# interpreter exits normally, and reports what was left.
UVICORN = "import signal, uvicorn; signal.signal(signal.SIGTERM, lambda *_: None); uvicorn.main()"


@dataclass
class Service:
    """A running uvicorn, and what it has written so far."""

    process: Process
    log: list[str] = field(default_factory=list)
    url: str = ""

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.log.append(line)
            if found := re.search(r"Uvicorn running on (http://[\d.:]+)", line):
                self.url = found[1]

    async def end(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            return await self.process.wait()


@asynccontextmanager
async def served(postgres: RotatingPostgres, secret: Path) -> AsyncIterator[Service]:
    write_secret(secret, postgres.pair)
    settings = {"DATABASE_URL": postgres.dsn, "CREDENTIALS_FILE": str(secret), "MAX_LIFETIME": "1"}
    command = [sys.executable, "-W", "error", "-c", UVICORN, "fastapi_app:app", "--port", "0", "--ws", "none"]
    command += ["--no-access-log", "--app-dir", str(EXAMPLES)]
    service = Service(await asyncio.create_subprocess_exec(*command, env=os.environ | settings, stderr=PIPE))
    reading = asyncio.create_task(service.read_log(), name="log")
    try:
        await eventually(lambda: service.url or service.process.returncode is not None)
        assert service.url, "".join(service.log)
        yield service
    finally:
        if service.process.returncode is None:
            service.process.kill()
        await service.process.wait()
        await reading


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def eventually_true(holds: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.01)


@pytest.mark.proof
async def test_no_request_fails_while_passwords_change(postgres: RotatingPostgres, tmp_path: Path) -> None:
    secret = tmp_path / "pair.json"
    answers: Counter[object] = Counter()
    users: set[str] = set()
    stop = asyncio.Event()

    async def work(client: httpx.AsyncClient) -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            try:
                if turn % 2:
                    answer = await client.post("/transfer", params={"amount": 1})
                else:
                    answer = await client.get("/whoami")
                    users.add(answer.text.strip('"'))
                answers[answer.status_code] += 1
            except httpx.HTTPError as exc:
                answers[repr(exc)] += 1

    async with served(postgres, secret) as service:
        async with httpx.AsyncClient(base_url=service.url) as client, asyncio.TaskGroup() as tasks:
            for _ in range(WORKERS):
                tasks.create_task(work(client))
            for parity in itertools.islice(itertools.cycle(["odd", "even"]), ROTATIONS):
                write_secret(secret, await postgres.rotate(parity))
                await asyncio.sleep(1.5)  # the spacing of the rotations
            stop.set()
        assert await service.end() == 0
    assert set(answers) == {200}
    assert answers.total() > 100
    assert users == set(postgres.usernames)
    assert postgres.failed_logins() <= 2 * ROTATIONS
    for credential in postgres.pair.credentials():
        assert credential.password.reveal() not in "".join(service.log)


async def test_sigterm_lets_a_request_finish_and_leaves_no_session(postgres: RotatingPostgres, tmp_path: Path) -> None:
    async def is_sleeping() -> bool:
        return any("pg_sleep" in row["query"] and row["state"] == "active" for row in await postgres.sessions())

    async def is_gone() -> bool:
        return not await postgres.sessions()

    async with (
        served(postgres, tmp_path / "pair.json") as service,
        httpx.AsyncClient(base_url=service.url, timeout=20) as client,
    ):
        request = asyncio.create_task(client.get("/whoami", params={"pause": 2}), name="request")
        await eventually_true(is_sleeping)
        ended = await service.end()
        assert (await request).status_code == 200
    log = "".join(service.log)
    assert ended == 0, log
    assert "Application shutdown complete" in log
    assert "Finished server process" in log
    assert not re.search("Traceback|Error|Warning|WARNING|terminated", log), log
    async with asyncio.timeout(1):  # the server notices an orderly end immediately
        await eventually_true(is_gone)


async def test_the_health_endpoint_alarms_while_requests_are_still_served(
    postgres: RotatingPostgres, tmp_path: Path
) -> None:
    secret = tmp_path / "pair.json"
    async with served(postgres, secret) as service:
        async with httpx.AsyncClient(base_url=service.url) as client:
            assert (await client.get("/health")).status_code == 200
            await postgres.rotate_both()

            async def is_alarmed() -> bool:
                assert (await client.get("/whoami")).status_code == 200
                return (await client.get("/health")).status_code == 503

            await eventually_true(is_alarmed)
            write_secret(secret, postgres.pair)

            async def is_well() -> bool:
                assert (await client.get("/whoami")).status_code == 200
                return (await client.get("/health")).status_code == 200

            await eventually_true(is_well)
        assert await service.end() == 0
