"""A pool, a rotation and an SQLAlchemy engine under one agent; fails if the agent would send a password.

Run by `make agents`, as `python tools/agent_scenario.py AGENT`, in an environment that has the agent.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What the agent would have sent, as it was about to send it.
sent: list[bytes] = []
#: All passwords of the run. A local variable would be sent with the application's own frames.
passwords: set[str] = set()


class Sink(BaseHTTPRequestHandler):
    """In the place of the agent's backend, on 127.0.0.1."""

    def answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        while self.headers.get("Transfer-Encoding") == "chunked" and (line := self.rfile.readline().strip()):
            body += self.rfile.read(int(line, 16))
            self.rfile.readline()
            if line == b"0":
                break
        sent.append(_unpacked(body))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


def _unpacked(body: bytes) -> bytes:
    import gzip
    import zlib

    for unpack in (gzip.decompress, zlib.decompress):
        try:
            return unpack(body)
        except (OSError, zlib.error):
            pass
    return body


def serve() -> str:
    sink = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{sink.server_port}"


# Each starts an agent, and returns what makes it send all that it has, with the error that the application has met.


def newrelic(url: str) -> Callable[[BaseException], None]:
    os.environ.update(
        NEW_RELIC_LICENSE_KEY="0" * 40, NEW_RELIC_DEVELOPER_MODE="true", NEW_RELIC_APP_NAME="x",
        NEW_RELIC_LOG="stderr", NEW_RELIC_LOG_LEVEL="error",
    )  # fmt: skip
    import newrelic.agent  # after that: it reads the environment when it is imported
    from newrelic.core.application import Application

    # In its developer mode the agent sends nothing, so look at what a transaction hands over to be sent.
    record = Application.record_transaction

    def recording(self: Application, data: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(repr(data).encode())
        return record(self, data, *args, **kwargs)

    Application.record_transaction = recording
    newrelic.agent.initialize()
    transaction = newrelic.agent.BackgroundTask(newrelic.agent.register_application(timeout=10.0), name="scenario")
    transaction.__enter__()

    def flush(error: BaseException) -> None:
        newrelic.agent.notice_error((type(error), error, error.__traceback__))
        transaction.__exit__(None, None, None)
        newrelic.agent.shutdown_agent(timeout=10.0)

    return flush


def ddtrace(url: str) -> Callable[[BaseException], None]:
    os.environ.update(DD_TRACE_AGENT_URL=url, DD_INSTRUMENTATION_TELEMETRY_ENABLED="false", DD_TRACE_STARTUP_LOGS="0")
    import ddtrace.auto  # noqa: F401
    from ddtrace.trace import tracer

    span = tracer.trace("scenario")

    def flush(error: BaseException) -> None:
        span.set_exc_info(type(error), error, error.__traceback__)
        span.finish()
        tracer.flush()

    return flush


def elastic(url: str) -> Callable[[BaseException], None]:
    import elasticapm

    client = elasticapm.Client(
        {"SERVICE_NAME": "x", "SERVER_URL": url, "CENTRAL_CONFIG": False, "CLOUD_PROVIDER": "none"}
    )
    elasticapm.instrument()
    client.begin_transaction("scenario")

    def flush(error: BaseException) -> None:
        client.capture_exception((type(error), error, error.__traceback__))
        client.end_transaction("scenario", "done")
        client.close()

    return flush


def sentry(url: str) -> Callable[[BaseException], None]:
    import sentry_sdk
    from sentry_sdk.integrations.asyncpg import AsyncPGIntegration

    sentry_sdk.init(
        dsn=url.replace("://", "://key@") + "/1", traces_sample_rate=1.0, integrations=[AsyncPGIntegration()],
        include_local_variables=True, send_default_pii=True,
    )  # fmt: skip
    transaction = sentry_sdk.start_transaction(name="scenario")
    transaction.__enter__()

    def flush(error: BaseException) -> None:
        sentry_sdk.capture_exception(error)
        transaction.__exit__(None, None, None)
        sentry_sdk.flush(10.0)

    return flush


def opentelemetry(url: str) -> Callable[[BaseException], None]:
    from opentelemetry import trace
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    AsyncPGInstrumentor(capture_parameters=True).instrument()

    def flush(error: BaseException) -> None:
        with trace.get_tracer("scenario").start_as_current_span("scenario") as span:
            span.record_exception(error)
        sent.extend(span.to_json().encode() for span in exporter.get_finished_spans())

    return flush


AGENTS = {each.__name__: each for each in (newrelic, ddtrace, elastic, sentry, opentelemetry)}


async def scenario(flush: Callable[[BaseException], None]) -> None:
    import sqlalchemy as sa

    import aiopqr
    from aiopqr.integrations.sqlalchemy import async_engine
    from aiopqr.testing import EmbeddedPostgres, RotatingPostgres

    def remember(pair: aiopqr.CredentialPair) -> None:
        passwords.update(account.password.reveal() for account in pair.credentials())

    async def no_old_session(since: Any) -> None:
        async with asyncio.timeout(20):
            while any(row["backend_start"] < since for row in await postgres.sessions("odd")):
                assert await pool.fetchval("select 1") == 1
                await asyncio.sleep(0.05)

    async with EmbeddedPostgres() as server:
        passwords.add(server.admin_password.reveal())
        postgres = await RotatingPostgres.create(server)
        remember(postgres.pair)
        options = {"credentials": postgres.source, "refresh_interval": 0.2}
        async with aiopqr.create_pool(postgres.dsn, min_size=4, max_size=4, drain_on_rotation=True, **options) as pool:
            assert await pool.fetchval("select $1::int", 1) == 1
            since = await server.fetchval("select now()")
            remember(await postgres.rotate("odd"))
            await pool.refresh()
            await no_old_session(since)
            stats = pool.stats()
            assert stats.accounts["odd"].open + stats.accounts["even"].open == stats.size == 4, stats
        url = postgres.dsn.replace("postgresql://", "postgresql+asyncpg://")
        async with aiopqr.Connector(**options) as connector, async_engine(url, connector=connector) as engine:

            async def backend() -> int:
                async with engine.connect() as con:
                    return int(await con.scalar(sa.text("select pg_backend_pid()")))

            before = await backend()
            assert await backend() == before
            remember(await postgres.rotate_both())
            await connector.refresh()
            assert await backend() != before, "a superseded connection was kept"

        remember(await postgres.rotate_both(store_delay=None))
        try:
            async with aiopqr.create_pool(postgres.dsn, min_size=1, timeout=0.5, credentials=postgres.source):
                raise AssertionError("the pool opened")
        except aiopqr.AiopqrError as exc:
            flush(exc)
        await postgres.drop()
    payload = b"\n".join(sent)
    assert len(payload) > 500, f"the agent sent {len(payload)} bytes: is it at work?"
    leaked = [password for password in passwords if password.encode() in payload]
    assert not leaked, f"{len(leaked)} passwords are in what the agent would send"


if __name__ == "__main__":
    asyncio.run(scenario(AGENTS[sys.argv[1]](serve())))
