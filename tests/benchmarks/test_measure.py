"""The arithmetic of the benchmarks: a wrong median or a lenient verdict would make every table worthless."""

from __future__ import annotations

import pytest

from benchmarks.measure import TAIL_SAMPLES, Judged, Spread, Target, Verdict, interleave, p999, percentile, ratios


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_nothing_measured_is_an_error_and_no_zero() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def test_percentiles_are_by_nearest_rank() -> None:
    ordered = [float(n) for n in range(1, 1001)]
    assert [percentile(ordered, f) for f in (0.0, 0.5, 0.99, 0.999, 1.0)] == [1.0, 500.0, 990.0, 999.0, 1000.0]


def test_a_tail_needs_fifty_thousand_samples() -> None:
    assert p999([1.0] * (TAIL_SAMPLES - 1)) is None
    assert p999([1.0] * TAIL_SAMPLES) == 1.0


def test_ratios_are_taken_within_each_round() -> None:
    # Both double from round to round, as on a machine that becomes idle: the ratio stays.
    assert ratios([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == Spread(2.0, 2.0, 2.0, 3)


def test_rounds_that_do_not_match_are_not_paired() -> None:
    with pytest.raises(ValueError, match="3 rounds cannot be paired with 2"):
        ratios([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("target", "ratio", "noise", "verdict"),
    [
        (Target("rate", 1.4), 1.4, 0.05, Verdict.HIT),
        (Target("rate", 1.4), 1.36, 0.05, Verdict.WITHIN),
        (Target("rate", 1.4), 1.3, 0.05, Verdict.MISS),
        (Target("rate", 1.4), 1.45, 0.3, Verdict.UNCLEAR),
        (Target("rate", 1.4), 1.3, 0.3, Verdict.UNCLEAR),
        (Target("rate", 1.4), 3.0, 0.3, Verdict.HIT),
        (Target("rate", 1.4), 0.7, 0.3, Verdict.MISS),
        (Target("fairness", 0.5), 0.0, 0.0, Verdict.MISS),
        (Target("cpu", 0.45, at_most=True), 0.0, 0.05, Verdict.HIT),
        (Target("cpu", 0.45, at_most=True), 0.45, 0.05, Verdict.HIT),
        (Target("cpu", 0.45, at_most=True), 0.46, 0.05, Verdict.WITHIN),
        (Target("cpu", 0.45, at_most=True), 0.5, 0.05, Verdict.MISS),
        (Target("cpu", 0.45, at_most=True), 0.5, 0.2, Verdict.UNCLEAR),
        (Target("errors", 1.0, at_most=True), 2.0, 0.0, Verdict.MISS),
    ],
)
def test_a_miss_is_a_miss_by_more_than_the_controls_spread(
    target: Target, ratio: float, noise: float, verdict: Verdict
) -> None:
    assert Judged(target, ratio, noise).verdict is verdict


def test_a_controls_noise_is_its_distance_from_one_or_half_its_quartiles() -> None:
    assert Spread(1.0, 0.95, 1.07, 15).noise == pytest.approx(0.06)
    assert Spread(1.1, 1.09, 1.11, 15).noise == pytest.approx(0.1)


async def test_every_round_runs_each_slot_once_in_an_order_drawn_anew() -> None:
    order: list[str] = []

    def slot(name: str):  # type: ignore[no-untyped-def]
        async def run() -> int:
            order.append(name)
            return len(order)

        return run

    results = await interleave({name: slot(name) for name in "abc"}, 40)
    rounds = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    assert [order[turn - 1] for turn in results["b"]] == ["b"] * 40
