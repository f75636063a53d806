"""Reports a pool's metrics and traces to OpenTelemetry, following its semantic conventions for connection pools.

All pools share one set of instruments per meter provider, because OpenTelemetry cannot remove an instrument, and if one
is created twice, ignores the second callback.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from .. import __version__
from .._pool import AlternatingPool
from ..errors import MissingExtra
from ..events import AllRefused, Event, FellBack, Refreshed, RefreshFailed
from ..stats import Histogram, PoolStats
from ._metrics import HISTOGRAMS, OBSERVED, InstrumentKind, Metric

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Status, StatusCode, Tracer, TracerProvider
except ImportError as exc:
    raise MissingExtra("aiopqr.integrations.opentelemetry", "opentelemetry") from exc

__all__ = [
    "instrument",
]

SCOPE = "aiopqr"
POOL_NAME = "db.client.connection.pool.name"
LOOP_PATIENCE = 1.0


def instrument(
    pool: AlternatingPool,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Instrumentation:
    """Report a pool's metrics and traces until :meth:`Instrumentation.uninstrument`, or until the pool is gone.

    Call it on the open pool's event loop, once for each provider. Without providers, it uses the global
    ones, so set those first. Give each pool a ``name=`` to distinguish them. Metrics are read on the event loop,
    whichever thread collects them. If the loop does not answer within a second, the last known values are reported.

    Fallbacks, refreshes and the refusal of all accounts become events of the current span. If no span is being
    recorded, each becomes a span of its own.
    """
    return Instrumentation(
        pool,
        _instruments_of(meter_provider or metrics.get_meter_provider()),
        trace.get_tracer(SCOPE, __version__, tracer_provider),
    )


class Instrumentation:
    """What :func:`instrument` attached to a pool. Leaving it as a context manager detaches it."""

    def __init__(self, pool: AlternatingPool, instruments: _Instruments, tracer: Tracer) -> None:
        self._pool = weakref.ref(pool)
        self._loop = asyncio.get_running_loop()
        self._tracer = tracer
        self._attributes = {POOL_NAME: pool.name}
        self._latest: PoolStats | None = None
        self._observers: list[tuple[Histogram, Callable[[float], object]]] = []
        for metric, histogram in zip(HISTOGRAMS, histograms(pool), strict=True):
            observe = instruments.recorder(metric, self._attributes)
            histogram.observers += (observe,)
            self._observers.append((histogram, observe))
        pool.events.add(self._on_event)
        self._instruments = instruments
        instruments.watch(self)

    def uninstrument(self) -> None:
        """Stop reporting. A second call does nothing."""
        self._instruments.forget(self)
        for histogram, observe in self._observers:
            histogram.observers = tuple(other for other in histogram.observers if other is not observe)
        if self._observers and (pool := self._pool()):
            pool.events.remove(self._on_event)
        self._observers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.uninstrument()

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of all measurements of the pool."""
        return self._attributes

    def look(self) -> PoolStats | None:
        """A snapshot taken on the pool's event loop; the last one if the loop is busy, None if the pool is gone."""
        if self._is_on_loop():
            self._latest = self._stats()
        elif self._loop.is_closed():
            self._latest = None
        else:
            answer: concurrent.futures.Future[None] = concurrent.futures.Future()
            with contextlib.suppress(RuntimeError, TimeoutError):
                self._loop.call_soon_threadsafe(self._answer, answer)
                answer.result(LOOP_PATIENCE)
        return self._latest

    def _is_on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _answer(self, answer: concurrent.futures.Future[None]) -> None:
        self._latest = self._stats()
        answer.set_result(None)

    def _stats(self) -> PoolStats | None:
        pool = self._pool()
        return None if pool is None or pool.is_closing() else pool.stats()

    def _on_event(self, event: Event) -> None:
        report = _report(event)
        if report is None:
            return
        name, attributes, error = report
        attributes = {**self._attributes, **attributes}
        current = trace.get_current_span()
        if current.is_recording():
            current.add_event(name, attributes)
            return
        span = self._tracer.start_span(name, context.Context(), attributes=attributes)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end()


def _report(event: Event) -> tuple[str, dict[str, Any], str | None] | None:
    """What a trace records of an event: a name, attributes, and an error or None. None if it records nothing."""
    match event:
        case FellBack():
            return "aiopqr.fallback", {"aiopqr.account": str(event.parity), "aiopqr.refused": str(event.refused)}, None
        case AllRefused():
            return "aiopqr.all_refused", {"aiopqr.pair.age": event.pair_age}, "all accounts are refused"
        case Refreshed():
            return "aiopqr.refresh", {"aiopqr.changed": [str(parity) for parity in event.changed]}, None
        case RefreshFailed():
            attributes = {
                "error.type": event.error.partition(":")[0],
                "aiopqr.failures": event.failures,
                "aiopqr.retry_in": event.retry_in,
                "aiopqr.pair.age": event.pair_age,
            }
            return "aiopqr.refresh", attributes, event.error
    return None


def histograms(pool: AlternatingPool) -> tuple[Histogram, ...]:
    """The pool's histograms, in the order of :data:`HISTOGRAMS`."""
    return pool.connector.connect_time, pool.wait_time, pool.use_time


class _Instruments:
    """A set of instruments that all pools of a meter provider share. Their instrumentations keep it alive."""

    def __init__(self, meter: Meter) -> None:
        self._watched: weakref.WeakSet[Instrumentation] = weakref.WeakSet()
        self._watching = threading.Lock()  # never held while waiting for a loop
        self._collecting = threading.Lock()
        self._snapshots: list[tuple[dict[str, str], PoolStats]] = []
        self._seen_by: set[str] = set()
        self._histograms = {
            metric.name: meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=metric.buckets,
            )
            for metric in HISTOGRAMS
        }
        for metric in OBSERVED:
            create = {
                InstrumentKind.COUNTER: meter.create_observable_counter,
                InstrumentKind.UP_DOWN: meter.create_observable_up_down_counter,
                InstrumentKind.GAUGE: meter.create_observable_gauge,
            }[metric.kind]
            create(metric.name, [self._callback(metric)], metric.unit, metric.description)

    def watch(self, instrumentation: Instrumentation) -> None:
        with self._watching:
            self._watched.add(instrumentation)

    def forget(self, instrumentation: Instrumentation) -> None:
        with self._watching:
            self._watched.discard(instrumentation)

    def recorder(self, metric: Metric, attributes: dict[str, str]) -> Callable[[float], object]:
        record = self._histograms[metric.name].record
        return lambda seconds: record(seconds, attributes)

    def _callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with self._collecting:
                self._look(metric.name)
                return [
                    Observation(value, {**labels, **attributes})
                    for labels, stats in self._snapshots
                    for value, attributes in metric.read(stats)
                ]

        return observe

    def _look(self, reader: str) -> None:
        """Take new snapshots when a collection begins, that is, when a metric has used the latest ones already."""
        if self._seen_by and reader not in self._seen_by:
            self._seen_by.add(reader)
            return
        self._seen_by = {reader}
        with self._watching:
            watched = list(self._watched)
        self._snapshots = [(one.attributes, stats) for one in watched if (stats := one.look())]


_all: weakref.WeakKeyDictionary[MeterProvider, _Instruments] = weakref.WeakKeyDictionary()


def _instruments_of(provider: MeterProvider) -> _Instruments:
    found = _all.get(provider)
    if found is None:
        found = _all[provider] = _Instruments(provider.get_meter(SCOPE, __version__))
    return found
