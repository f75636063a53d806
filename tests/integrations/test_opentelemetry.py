"""A pool's metrics and traces, read with OpenTelemetry's own SDK."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.trace import StatusCode

import aiopqr
from aiopqr.integrations import opentelemetry as integration
from aiopqr.integrations._metrics import HISTOGRAMS, OBSERVED, InstrumentKind
from aiopqr.integrations.opentelemetry import instrument
from aiopqr.testing import RotatingPostgres

POOL = db_attributes.DB_CLIENT_CONNECTION_POOL_NAME
STATE = db_attributes.DB_CLIENT_CONNECTION_STATE


class Metrics:
    """What one collection returns: by metric and attributes other than the pool's name."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collect(self, pool: str = "aiopqr") -> dict[str, Any]:
        found: dict[str, Any] = {}
        data = self.reader.get_metrics_data()
        for metric in (
            metric for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for metric in s.metrics
        ):
            for point in metric.data.data_points:
                attributes = dict(point.attributes)
                if attributes.pop(POOL) == pool:
                    value = point.value if hasattr(point, "value") else point
                    found.setdefault(metric.name, {})[" ".join(map(str, attributes.values()))] = value
        return found


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics()
    yield made
    made.provider.shutdown()


class Traces:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made
    made.provider.shutdown()


def make_pool(postgres: RotatingPostgres, **options: Any) -> aiopqr.AlternatingPool:
    return aiopqr.create_pool(postgres.dsn, credentials=postgres.source, **{"min_size": 1, "max_size": 4, **options})


class _Recorder:
    """A meter that notes how the conventions' own package makes each instrument."""

    def __getattr__(self, kind: str) -> Any:
        return lambda **made: (kind, made)


@pytest.mark.parametrize(
    "metric", [m for m in (*OBSERVED, *HISTOGRAMS) if m.name.startswith("db.")], ids=lambda m: m.name
)
def test_the_conventions_metrics_are_named_and_measured_as_their_package_says(metric: Any) -> None:
    kinds = {
        InstrumentKind.COUNTER: "create_counter",
        InstrumentKind.UP_DOWN: "create_up_down_counter",
        InstrumentKind.HISTOGRAM: "create_histogram",
    }
    kind, made = getattr(db_metrics, f"create_{metric.name.replace('.', '_')}")(_Recorder())
    assert kind == kinds[metric.kind]
    assert (made["name"], made["unit"]) == (metric.name, metric.unit)
    assert made["description"].rstrip(".") == metric.description.rstrip(".")


def test_all_of_the_conventions_connection_metrics_are_there() -> None:
    wanted = {value for key, value in vars(db_metrics).items() if key.startswith("DB_CLIENT_CONNECTION_")}
    assert {m.name for m in (*OBSERVED, *HISTOGRAMS) if m.name.startswith("db.")} == wanted


async def test_connections_are_counted_by_state(postgres: RotatingPostgres, metrics: Metrics) -> None:
    async with make_pool(postgres, min_size=3) as pool:
        instrument(pool, meter_provider=metrics.provider)
        async with pool.acquire():
            found = metrics.collect()
    assert found["db.client.connection.count"] == {"idle": 2, "used": 1}
    assert found["db.client.connection.idle.min"] == {"": 3}
    assert found["db.client.connection.idle.max"] == found["db.client.connection.max"] == {"": 4}


async def test_timings_are_recorded_one_by_one_in_the_advised_buckets(
    postgres: RotatingPostgres, metrics: Metrics
) -> None:
    async with make_pool(postgres, min_size=0) as pool:
        instrument(pool, meter_provider=metrics.provider)
        for _ in range(3):
            await pool.fetchval("select pg_sleep(0.02)")
        found = metrics.collect()
    assert found["db.client.connection.create_time"][""].count == 1
    assert found["db.client.connection.wait_time"][""].count == 3
    assert found["db.client.connection.use_time"][""].count == 3
    assert found["db.client.connection.use_time"][""].sum >= 0.06
    assert found["db.client.connection.use_time"][""].explicit_bounds[:3] == (0.001, 0.005, 0.01)


async def test_waiters_and_timeouts_are_counted(postgres: RotatingPostgres, metrics: Metrics) -> None:
    async with make_pool(postgres, max_size=1) as pool:
        instrument(pool, meter_provider=metrics.provider)
        async with pool.acquire():
            waiter = asyncio.create_task(pool.acquire(timeout=0.2).__aenter__(), name="waiter")
            await asyncio.sleep(0)
            assert metrics.collect()["db.client.connection.pending_requests"] == {"": 1}
            with pytest.raises(TimeoutError):
                await waiter
        found = metrics.collect()
    assert found["db.client.connection.pending_requests"] == {"": 0}
    assert found["db.client.connection.timeouts"] == {"": 1}


async def test_refusals_fallbacks_and_refreshes_are_counted_by_account(
    postgres: RotatingPostgres, metrics: Metrics
) -> None:
    await postgres.rotate("odd", store_delay=None)
    async with make_pool(postgres, min_size=0) as pool:
        instrument(pool, meter_provider=metrics.provider)
        async with pool.acquire(), pool.acquire():
            await postgres.source.wait_fetched(2)
            found = metrics.collect()
        assert found["aiopqr.account.refusals"] == {"odd": 1, "even": 0}
        assert found["aiopqr.account.logins"] == {"odd": 0, "even": 2}
        assert found["aiopqr.account.connections"] == {"odd": 0, "even": 2}
        assert found["aiopqr.account.refused_time"]["odd"] > 0.0
        assert found["aiopqr.account.refused_time"]["even"] == 0.0
        assert found["aiopqr.fallbacks"] == {"": 1}
        postgres.source.error = aiopqr.SourceError("down")
        with pytest.raises(aiopqr.SourceError):
            await pool.refresh()
        found = metrics.collect()
        assert found["aiopqr.refreshes"]["failed"] >= 1
        assert found["aiopqr.refreshes"]["ok"] >= 1
        assert found["aiopqr.refresh.failures_in_a_row"][""] >= 1
        assert found["aiopqr.pair.age"][""] > 0.0
        assert found["aiopqr.pair.accounts"] == {"": 2}


async def test_a_degraded_pair_shows_one_account(postgres: RotatingPostgres, metrics: Metrics) -> None:
    postgres.source.pair = aiopqr.CredentialPair(odd=postgres.pair.odd, even=None)
    async with make_pool(postgres) as pool:
        instrument(pool, meter_provider=metrics.provider)
        found = metrics.collect()
    assert found["aiopqr.pair.accounts"] == {"": 1}
    assert set(found["aiopqr.account.connections"]) == {"odd"}


async def test_replacements_are_counted_by_reason(postgres: RotatingPostgres, metrics: Metrics) -> None:
    replaced = asyncio.Event()
    hear = [lambda event: replaced.set() if type(event).__name__ == "Replaced" else None]
    async with make_pool(postgres, max_lifetime=0.1, listeners=hear) as pool:
        instrument(pool, meter_provider=metrics.provider)
        await replaced.wait()
        found = metrics.collect()
    assert found["aiopqr.replacements"]["lifetime"] >= 1
    assert found["aiopqr.replacement.delayed"] == {"": 0}


async def test_a_delayed_replacement_shows_as_long_as_it_is_delayed(postgres: RotatingPostgres) -> None:
    async with make_pool(postgres) as pool:
        stats = pool.stats()
    (metric,) = (metric for metric in OBSERVED if metric.name == "aiopqr.replacement.delayed")
    delayed = replace(stats, replacements=replace(stats.replacements, delayed_by="CredentialsRefused"))
    assert [list(metric.read(one)) for one in (stats, delayed)] == [[(0, {})], [(1, {})]]


async def test_a_connection_that_is_held_past_its_lifetime_shows_as_overdue(
    postgres: RotatingPostgres, metrics: Metrics
) -> None:
    overdue = asyncio.Event()
    hear = [lambda event: overdue.set() if type(event).__name__ == "ConnectionOverdue" else None]
    async with make_pool(postgres, max_lifetime=0.1, listeners=hear) as pool, pool.acquire():
        instrument(pool, meter_provider=metrics.provider)
        assert metrics.collect()["aiopqr.connections.overdue"] == {"": 0}
        await overdue.wait()
        assert metrics.collect()["aiopqr.connections.overdue"] == {"": 1}


async def test_every_metric_of_the_table_is_exported(postgres: RotatingPostgres, metrics: Metrics) -> None:
    replaced = asyncio.Event()
    hear = [lambda event: replaced.set() if type(event).__name__ == "Replaced" else None]
    odd = postgres.pair.odd
    assert odd
    expiring = aiopqr.Credential(odd.username, odd.password, datetime.now(UTC) + timedelta(hours=1))
    postgres.source.pair = replace(postgres.pair, odd=expiring)
    async with make_pool(postgres, min_size=1, max_lifetime=0.1, listeners=hear) as pool:
        instrument(pool, meter_provider=metrics.provider)
        await pool.fetchval("select 1")
        await replaced.wait()
        found = metrics.collect()
    assert set(found) == {metric.name for metric in (*OBSERVED, *HISTOGRAMS)}


async def test_stats_are_read_once_in_each_collection(
    postgres: RotatingPostgres, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_pool(postgres) as pool:
        instrument(pool, meter_provider=metrics.provider)
        reads = 0
        stats = type(pool).stats

        def counted(self: aiopqr.AlternatingPool) -> Any:
            nonlocal reads
            reads += 1
            return stats(self)

        monkeypatch.setattr(type(pool), "stats", counted)
        for collections in (1, 2, 3):
            metrics.collect()
            assert reads == collections


async def test_another_thread_may_collect(postgres: RotatingPostgres, metrics: Metrics) -> None:
    async with make_pool(postgres) as pool:
        instrument(pool, meter_provider=metrics.provider)
        found = await asyncio.to_thread(metrics.collect)
        assert found["db.client.connection.count"] == {"idle": 1, "used": 0}
        async with pool.acquire():
            found = await asyncio.to_thread(metrics.collect)
    assert found["db.client.connection.count"] == {"idle": 0, "used": 1}


async def test_a_busy_loop_gets_the_last_known_values_reported(
    postgres: RotatingPostgres, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration, "LOOP_PATIENCE", 0.05)
    async with make_pool(postgres) as pool:
        instrument(pool, meter_provider=metrics.provider)
        metrics.collect()
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(metrics.collect).result(20)  # which blocks the loop meanwhile
    assert found["db.client.connection.count"] == {"idle": 1, "used": 0}


async def test_pools_share_a_provider_under_their_names(postgres: RotatingPostgres, metrics: Metrics) -> None:
    async with make_pool(postgres, name="one") as one, make_pool(postgres, name="two", max_size=7) as two:
        instrument(one, meter_provider=metrics.provider)
        instrument(two, meter_provider=metrics.provider)
        assert metrics.collect("one")["db.client.connection.max"] == {"": 4}
        assert metrics.collect("two")["db.client.connection.max"] == {"": 7}


async def test_nothing_is_reported_after_uninstrument_and_again_after_another_instrument(
    postgres: RotatingPostgres, metrics: Metrics
) -> None:
    async with make_pool(postgres) as pool:
        with instrument(pool, meter_provider=metrics.provider) as instrumentation:
            await pool.fetchval("select 1")
            before = metrics.collect()["db.client.connection.wait_time"][""].count
        instrumentation.uninstrument()
        await pool.fetchval("select 1")
        found = metrics.collect()
        assert "db.client.connection.count" not in found
        assert found["db.client.connection.wait_time"][""].count == before
        assert pool.wait_time.observers == ()
        instrument(pool, meter_provider=metrics.provider)
        assert "db.client.connection.count" in metrics.collect()


async def test_a_closed_pool_is_no_longer_reported(postgres: RotatingPostgres, metrics: Metrics) -> None:
    async with make_pool(postgres) as pool:
        instrument(pool, meter_provider=metrics.provider)
        assert "db.client.connection.count" in metrics.collect()
    assert "db.client.connection.count" not in metrics.collect()


def test_nothing_is_reported_once_the_loop_is_closed(postgres: RotatingPostgres, metrics: Metrics) -> None:
    async def use() -> aiopqr.AlternatingPool:
        pool = await make_pool(postgres)
        instrument(pool, meter_provider=metrics.provider)
        assert "db.client.connection.count" in metrics.collect()
        pool.terminate()
        return pool

    pool = asyncio.run(use())
    assert "db.client.connection.count" not in metrics.collect()
    del pool


async def test_an_instrumented_pool_is_collected_as_any_other(postgres: RotatingPostgres, metrics: Metrics) -> None:
    pool = await make_pool(postgres)
    kept = instrument(pool, meter_provider=metrics.provider)
    metrics.collect()
    await pool.close()
    ref = weakref.ref(pool)
    del pool
    gc.collect()
    assert ref() is None
    assert "db.client.connection.count" not in metrics.collect()
    kept.uninstrument()


def test_a_provider_is_collected_with_its_instruments(postgres: RotatingPostgres) -> None:
    async def use() -> weakref.ref[MeterProvider]:
        made = Metrics()
        async with make_pool(postgres) as pool:
            instrument(pool, meter_provider=made.provider)
            made.collect()
        made.provider.shutdown()
        return weakref.ref(made.provider)

    ref = asyncio.run(use())
    gc.collect()
    assert ref() is None


# Traces.


async def test_a_fallback_within_a_span_is_an_event_of_it(postgres: RotatingPostgres, traces: Traces) -> None:
    await postgres.rotate("odd", store_delay=None)
    async with make_pool(postgres, min_size=0, name="orders") as pool:
        instrument(pool, tracer_provider=traces.provider)
        with traces.tracer.start_as_current_span("request"):
            await pool.fetchval("select 1")
    (request,) = traces.spans("request")
    (event,) = (event for event in request.events if event.name == "aiopqr.fallback")
    assert dict(event.attributes or {}) == {POOL: "orders", "aiopqr.account": "even", "aiopqr.refused": "odd"}


async def test_a_fallback_outside_of_spans_is_one_of_its_own(postgres: RotatingPostgres, traces: Traces) -> None:
    await postgres.rotate("odd", store_delay=None)
    async with make_pool(postgres, min_size=0) as pool:
        instrument(pool, tracer_provider=traces.provider)
        await pool.fetchval("select 1")
    assert len(traces.spans("aiopqr.fallback")) == 1


async def test_a_refresh_that_brought_something_is_a_span(postgres: RotatingPostgres, traces: Traces) -> None:
    async with make_pool(postgres) as pool:
        instrument(pool, tracer_provider=traces.provider)
        await pool.refresh()
        assert traces.spans("aiopqr.refresh") == []
        await postgres.rotate("even")
        await pool.refresh()
    (span,) = traces.spans("aiopqr.refresh")
    assert (span.attributes or {})["aiopqr.changed"] == ("even",)
    assert span.status.status_code is StatusCode.UNSET


async def test_nothing_is_traced_after_uninstrument(postgres: RotatingPostgres, traces: Traces) -> None:
    async with make_pool(postgres) as pool:
        with instrument(pool, tracer_provider=traces.provider):
            pass
        await postgres.rotate("even")
        await pool.refresh()
    assert traces.spans("aiopqr.refresh") == []


async def test_a_refresh_that_failed_is_a_span_with_its_error(postgres: RotatingPostgres, traces: Traces) -> None:
    async with make_pool(postgres) as pool:
        instrument(pool, tracer_provider=traces.provider)
        postgres.source.then(aiopqr.SourceError("the store is down"))
        with pytest.raises(aiopqr.SourceError):
            await pool.refresh()
    (span,) = traces.spans("aiopqr.refresh")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "SourceError: the store is down"
    assert (span.attributes or {})["error.type"] == "SourceError"


async def test_no_metric_or_span_shows_a_secret(postgres: RotatingPostgres, metrics: Metrics, traces: Traces) -> None:
    await postgres.rotate_both(store_delay=None)
    async with make_pool(postgres, min_size=0) as pool:
        instrument(pool, meter_provider=metrics.provider, tracer_provider=traces.provider)
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.5)
        data = metrics.reader.get_metrics_data()
    assert traces.spans("aiopqr.all_refused")
    exported = (data.to_json() if data else "") + "".join(
        span.to_json() for span in traces.exporter.get_finished_spans()
    )
    assert "db.client.connection.count" in exported
    for pair in (postgres.pair, postgres.source.pair):
        for credential in pair.credentials():
            assert credential.password.reveal() not in exported
