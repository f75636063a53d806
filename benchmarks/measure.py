"""Turns measurements into medians with their spread, ratios within one round, and verdicts.

It is pure, so that the arithmetic can be tested. Every ratio is taken within a round, in which all peers run one after
another. The control is the reference's ratio to a second instance of itself. It shows the machine's noise, and no
difference smaller than that is claimed.
"""

from __future__ import annotations

import enum
import math
import random
import statistics
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDE = 0.15  # a control that differs from itself by more cannot tell a miss from noise
TAIL_SAMPLES = 50_000  # with fewer, a p99.9 depends on a few operations


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        if not ordered:
            raise ValueError("nothing was measured")
        return cls(statistics.median(ordered), percentile(ordered, 0.25), percentile(ordered, 0.75), len(ordered))

    @property
    def noise(self) -> float:
        """For a control, whose ratio should be 1: how far it is from 1, as a fraction."""
        return max(abs(self.median - 1), (self.high - self.low) / 2)


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The percentile, by nearest rank, of values in ascending order."""
    if not ordered:
        raise ValueError("nothing was measured")
    return ordered[max(math.ceil(fraction * len(ordered)) - 1, 0)]


def p999(ordered: Sequence[float]) -> float | None:
    """The 99.9th percentile, or None if there are too few samples."""
    return percentile(ordered, 0.999) if len(ordered) >= TAIL_SAMPLES else None


def ratios(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """The spread of each round's value divided by the reference's in the same round."""
    if len(values) != len(reference):
        raise ValueError(f"{len(values)} rounds cannot be paired with {len(reference)}")
    return Spread.of(value / base for value, base in zip(values, reference, strict=True))


class Verdict(enum.StrEnum):
    HIT = "hit"
    WITHIN = "short, but within the control's spread"
    MISS = "miss"
    UNCLEAR = "the control's spread is too wide to tell"


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio to reach: at least ``limit``, or (``at_most``) no more than that."""

    name: str
    limit: float
    at_most: bool = False

    def judge(self, ratio: float, noise: float) -> Verdict:
        """A target counts as missed only if it is missed by more than the control's spread."""
        better, worse = (self.limit, ratio) if self.at_most else (ratio, self.limit)
        short = worse / better - 1 if better else math.inf
        if noise > WIDE and abs(short) <= noise:
            return Verdict.UNCLEAR
        if short <= 0:
            return Verdict.HIT
        return Verdict.WITHIN if short <= noise else Verdict.MISS


@dataclass(frozen=True, slots=True)
class Judged:
    """A target, what was measured, and what that means."""

    target: Target
    ratio: float
    noise: float

    @property
    def verdict(self) -> Verdict:
        return self.target.judge(self.ratio, self.noise)


async def interleave(
    slots: Mapping[str, Callable[[], Awaitable[Any]]],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
    *,
    seed: int = 0,
) -> dict[str, list[Any]]:
    """Run every slot once in each round, in a new random order. A fixed order favours a peer that always follows a
    light one, or one of its own kind: two identical peers differed by 10% here."""
    results: dict[str, list[Any]] = {name: [] for name in slots}
    order, shuffle = list(slots), random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            results[name].append(await slots[name]())
            advance()
    return results
