"""How much is measured: the full run takes about 20 minutes, and the quick one less than two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Plan:
    """How long one run of one peer takes, in seconds: ``slot`` and ``brief_slot`` in the churn scenario, with and
    without a target; ``steady_slot``, at least, in the steady one; ``fair_slot`` where tasks' shares are compared.
    ``tail`` is the number of samples for the tails that matter. ``generations`` is how many times a point with a target
    is measured with new processes."""

    pairs: int = 15
    generations: int = 3
    slot: float = 0.3
    brief_slot: float = 0.13
    steady_slot: float = 0.06
    fair_slot: float = 3.0
    tail: int = 50_000
    every_tail: bool = False
    quick: bool = False
    tls: bool = True
    uvloop: bool = True
    repetitions: int = 1

    @classmethod
    def brief(cls) -> Plan:
        return cls(pairs=5, slot=0.2, brief_slot=0.2, tail=0, generations=1, fair_slot=0.7, quick=True, tls=False)

    def with_pairs(self, pairs: int | None) -> Plan:
        return self if pairs is None else replace(self, pairs=pairs)


Progress = Callable[[str, int, int], None]  # what is being measured, steps done, steps in total


def silent(what: str, done: int, total: int) -> None:
    """No progress display."""


class Steps:
    """Counts the steps of one part of the work for the progress display."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._done = 0
        progress(what, 0, total)

    def advance(self) -> None:
        self._done += 1
        self._progress(self._what, self._done, self._total)
