"""The demo's results, in words and in JSON. Pure, and free of passwords."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one pool. Times are in seconds; ``p50`` to ``worst`` are those of ``acquire()``."""

    name: str
    operations: int
    failed: int
    p50: float
    p99: float
    p999: float
    worst: float
    silence: float
    refused: int
    by_log: bool
    most_open: int
    transfers: int
    books_balance: bool
    errors: Mapping[str, int] = field(default_factory=dict)
    opened_odd: int | None = None
    opened_even: int | None = None
    fallbacks: int | None = None
    replaced: int | None = None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What was tried, and the results. ``odd``, ``even`` and ``both`` count password changes.

    ``behind`` is how late the file was, in seconds, at most.
    """

    seconds: float
    interrupted: bool
    server: str
    workers: int
    connections: int
    lifetime: float
    planned: int
    odd: int
    even: int
    both: int
    behind: float
    ours: Figures
    plain: Figures | None = None
    picture: str | None = None
    single: bool = False

    @property
    def rotations(self) -> int:
        return self.odd + self.even + self.both

    @property
    def passed(self) -> bool:
        """Whether no operation failed or was lost, although passwords changed."""
        return not self.ours.failed and self.ours.books_balance and self.ours.operations > 0 and self.rotations > 0

    @property
    def exit_code(self) -> int:
        if not self.passed and not (self.interrupted and not self.ours.failed):
            return 1
        return 130 if self.interrupted else 0

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "rotations": self.rotations, **dataclasses.asdict(self)}

    def headline(self) -> str:
        ours = self.ours
        if ours.failed:
            return f"FAILED: {ours.failed:,} of {ours.operations + ours.failed:,} operations failed"
        if not ours.books_balance:
            return "FAILED: the database does not match what the operations wrote"
        if not ours.operations or not self.rotations:
            what = "no operation ran" if not ours.operations else "no password was changed"
            return f"{'INTERRUPTED' if self.interrupted else 'FAILED'}: {what}, so this run proves nothing"
        changed = f"{self.rotations} rotation" + ("s" if self.rotations > 1 else "")
        return f"{'INTERRUPTED after' if self.interrupted else 'PASSED:'} {changed} under load, no operation failed"

    def rows(self) -> list[tuple[str, str, str]]:
        """The figures: each row has a label, ours, and the plain pool's."""
        both = [self.ours] + ([self.plain] if self.plain else [])
        cells = [_cells(figures) for figures in both]
        rows = [(label, cells[0][label], cells[1].get(label, "") if self.plain else "") for label in cells[0]]
        return [row for row in rows if row[1] or row[2]]

    def tried(self) -> list[str]:
        """What was done to the pools, in sentences."""
        changes = [f"{name} {count}x" for name, count in (("odd", self.odd), ("even", self.even)) if count]
        if self.both:
            changes.append(f"both at once {self.both}x (with the file {self.behind:g} s behind)")
        load = f"{self.workers} workers for {self.seconds:.0f} s on {self.server}"
        tried = [
            f"{load}, with {self.connections} connections that were replaced after {self.lifetime:g} s.",
            f"Passwords changed {times(self.rotations)}: {', '.join(changes) or 'none'}.",
        ]
        if self.single:
            tried.append(
                f"With one account, new connections had to wait while the file was up to {self.behind:g} s behind the "
                "database. A second account in the secret removes that wait; nothing else has to change."
            )
        return tried


def _cells(figures: Figures) -> dict[str, str]:
    per = "in the server's log" if figures.by_log else "as seen by the pool"
    errors = ", ".join(f"{name} {count:,}" for name, count in figures.errors.items())
    opened = ""
    if figures.opened_odd is not None and figures.opened_even is not None:
        total = figures.opened_odd + figures.opened_even
        opened = f"{total:,} ({figures.opened_odd:,} odd, {figures.opened_even:,} even)"
    return {
        "operations": f"{figures.operations:,}",
        "failed": f"{figures.failed:,}",
        "failed with": errors,
        "acquire p50, p99": f"{duration(figures.p50)}, {duration(figures.p99)}",
        "p99.9, worst": f"{duration(figures.p999)}, {duration(figures.worst)}",
        "longest gap": duration(figures.silence),
        "refused logins": f"{figures.refused:,} {per}",
        "fell back": "" if figures.fallbacks is None else times(figures.fallbacks),
        "connections opened": opened,
        "replaced while in use": "" if figures.replaced is None else f"{figures.replaced:,}",
        "most open at once": f"{figures.most_open}",
        "transfers": f"{figures.transfers:,}, "
        + ("all in the database" if figures.books_balance else "which DO NOT MATCH the database"),
    }


def duration(seconds: float) -> str:
    """Format a duration in a readable unit: 0.05 ms, 3.2 ms, 1.7 s."""
    if seconds >= 1.0:
        return f"{seconds:.1f} s"
    milliseconds = seconds * 1000
    return (
        f"{milliseconds:.0f} ms"
        if milliseconds >= 10
        else f"{milliseconds:.1f} ms"
        if milliseconds >= 1
        else (f"{milliseconds:.2f} ms")
    )


def times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
