"""Counters and snapshots."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from aiopqr.credentials import Parity
from aiopqr.stats import BUCKETS, ConnectorCounts, Histogram, HistogramSnapshot


@given(st.lists(st.floats(0, 100)))
def test_every_measurement_is_in_the_bucket_of_the_next_bound(measured: list[float]) -> None:
    histogram = Histogram()
    for seconds in measured:
        histogram.record(seconds)
    snapshot = histogram.snapshot()
    bounds = [-1.0, *BUCKETS, float("inf")]
    expected = tuple(sum(low < seconds <= high for seconds in measured) for low, high in itertools.pairwise(bounds))
    assert snapshot.counts == expected
    assert snapshot.count == len(measured)
    assert snapshot.total == pytest.approx(sum(measured))
    assert snapshot.mean == pytest.approx(sum(measured) / len(measured) if measured else 0.0)


def test_a_snapshot_does_not_change_with_what_is_measured_later() -> None:
    histogram = Histogram()
    before = histogram.snapshot()
    histogram.record(0.5)
    assert before == HistogramSnapshot(BUCKETS, (0,) * 10, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.total = 1.0  # type: ignore[misc]


def test_observers_get_each_measurement() -> None:
    histogram = Histogram()
    seen: list[float] = []
    histogram.observers += (seen.append,)
    histogram.record(0.25)
    assert seen == [0.25]


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
def test_an_observer_that_raises_is_logged_with_its_stack_and_harms_nobody(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(seconds: float) -> None:
        raise error("metrics backend is down")

    histogram = Histogram()
    seen: list[float] = []
    histogram.observers += (broken, seen.append)
    histogram.record(0.25)
    assert seen == [0.25]
    assert histogram.snapshot().count == 1
    (record,) = caplog.records
    assert "broken" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is error


def test_the_counts_of_two_connectors_are_their_own() -> None:
    one, other = ConnectorCounts(), ConnectorCounts()
    one.accounts[Parity.ODD].opened += 1
    one.connect_time.record(1.0)
    assert other.accounts[Parity.ODD].opened == 0
    assert other.connect_time.snapshot().count == 0
