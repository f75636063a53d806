"""Writes the results: as Markdown for people, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .measure import WIDE, Judged, Spread
from .scenarios import churn, growth, rotation, steady

DASH = "-"


def as_json(value: Any) -> Any:
    """Turn what a scenario returns into plain data."""
    if isinstance(value, Judged):
        return {**dataclasses.asdict(value), "verdict": str(value.verdict)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def write_json(results: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. All columns but the first are numbers, and are aligned to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}{DASH}{spread.high:.2f})"


def milliseconds(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def targets(judged: Sequence[Judged]) -> str:
    """Each target, what was measured, and the verdict."""
    rows = []
    for one in judged:
        bound = f"{'≤' if one.target.at_most else '≥'} {one.target.limit:g}"
        rows.append(
            (one.target.name, bound, f"{one.ratio:.2f}", f"± {one.noise:.0%}" if one.noise else DASH, one.verdict)
        )
    return table(("target", "wanted", "measured", "control's spread", "verdict"), rows)


def warning(control: Spread, what: str) -> str:
    """A sentence if the machine was too busy to judge this point, or nothing if it was not."""
    if control.noise <= WIDE:
        return ""
    return f"\n**The control's spread is too wide to tell**: {what} differ by ± {control.noise:.0%}.\n"


def churn_section(result: dict[str, Any], _about: dict[str, Any]) -> str:
    parts = [
        (
            "## Churn: connect, `SELECT 1`, close\n\n"
            "Each ratio compares a client with `asyncpg.connect` in the same round; the range covers the middle "
            "half of the rounds. *Again* is the control: asyncpg compared with itself. *Longest stall* is the "
            "longest delay of a timer on the event loop, as a median of separate runs, each of which has to derive its "
            "SCRAM keys. *CPU each* is the CPU time of the client's process for one connection (for pgbench, including "
            "the start of the program), and *the server's* is that of Postgres.\n"
        )
    ]
    for point in result["points"]:
        rows = [
            (
                name,
                f"{peer['rate'].median:.0f}",
                ratio(peer["rate_ratio"]),
                f"{peer['cpu'].median * 1e3:.2f} ms",
                ratio(peer["cpu_ratio"]),
                f"{peer['server_cpu'].median * 1e3:.1f} ms",
                DASH if peer["stall"] is None else f"{peer['stall'].median * 1e3:.1f} ms",
            )
            for name, peer in point["peers"].items()
        ]
        parts.append(f"### {point['tasks']} at a time, {point['how']}, {point['loop']}\n")
        head = ("", "connections/s", "ratio", "CPU each", "ratio", "the server's", "longest stall")
        parts.append(table(head, rows) + warning(point["peers"][churn.CONTROL]["rate_ratio"], "two asyncpg clients"))
    return "\n".join(parts)


def steady_section(result: dict[str, Any], about: dict[str, Any]) -> str:
    parts = [
        (
            "## Steady: acquire, query, release\n\nasyncpg and aiopqr run a bare query, and so do psycopg_pool and "
            "SQLAlchemy in autocommit mode. By default, those two wrap every use in a transaction. aiopqr's default "
            "resets the session on each release, as asyncpg does. *Deferred reset* does the same, but the release does "
            "not wait for it; *transaction reset* only rolls back, as psycopg_pool and SQLAlchemy do. Ratios "
            "compare with asyncpg's pool in the same round. Where a round trip is given, a proxy delays each direction "
            "by half of it; otherwise the server is on the same machine. p99.9 is given if there are at least 50,000 "
            "samples. Where tasks have to wait, *fair* is the number of operations of the slowest task divided by that "
            f"of the fastest. Points with a target but no round trip are measured in {about['generations']} sets of "
            "processes.\n"
        )
    ]
    for point in result["points"]:
        rows = [
            (
                name,
                f"{peer['rate'].median:,.0f}",
                ratio(peer["rate_ratio"]),
                f"{peer['cpu'].median * 1e6:.0f} µs",
                ratio(peer["cpu_ratio"]),
                *(milliseconds(peer[key]) for key in ("p50", "p99", "p999")),
                DASH if peer["fairness"] is None else f"{peer['fairness']:.2f}",
            )
            for name, peer in point["peers"].items()
        ]
        title = steady.titled(steady.Point(*(point[name] for name in steady.Point._fields)))
        parts.append(f"### {title[0].upper()}{title[1:]}\n")
        head = ("", "operations/s", "ratio", "CPU each", "ratio", "p50 ms", "p99 ms", "p99.9 ms", "fair")
        parts.append(table(head, rows) + warning(point["peers"][steady.CONTROL]["rate_ratio"], "two asyncpg pools"))
    return "\n".join(parts)


def rotation_section(result: dict[str, Any], about: dict[str, Any]) -> str:
    parts = [
        (
            f"## Rotation: {rotation.TASKS} tasks on {rotation.SIZE} connections while passwords change\n\n"
            f"Connections live for {rotation.LIFETIME:g} s. asyncpg's pool has no lifetime, so a task calls "
            f"`expire_connections()` that often instead. The store takes {rotation.STORE_LATENCY * 1000:.0f} ms to "
            "answer. *Errors* are those that reach the application; *longest gap* is the longest time during which no "
            "task was served. The other columns show how long acquires took, in ms; each phase has some ten thousand "
            f"of them. Each phase was run {_times(about['repetitions'])}; a range gives the fewest and the most, and "
            "the gap is the longest of all runs. A peer with one account uses only the odd one, so a change of the "
            "even one does not affect it.\n"
        )
    ]
    for point in result["points"]:
        rows = [
            (
                name,
                _range(peer["errors"]),
                _range(peer["failed_logins"]),
                f"{peer['gap'] * 1e3:.0f} ms",
                *(milliseconds(peer[key]) for key in ("p50", "p99", "p999", "max")),
            )
            for name, peer in point["peers"].items()
        ]
        parts.append(f"### {point['phase']}\n")
        parts.append(table(("", "errors", "failed logins", "longest gap", "p50", "p99", "p99.9", "max"), rows))
    return "\n".join(parts)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}{DASH}{high}"


def growth_section(result: dict[str, Any], _about: dict[str, Any]) -> str:
    rows = []
    for point in result["points"]:
        ours, theirs = point["aiopqr"], point["asyncpg"]
        rows.append(
            (
                f"{point['pools']} x {point['size']}",
                f"{ours['open']['seconds'] * 1e3:.0f} / {theirs['open']['seconds'] * 1e3:.0f} ms",
                f"{ours['open']['cpu'] * 1e3:.0f} / {theirs['open']['cpu'] * 1e3:.0f} ms",
                f"{ours['open']['memory'] / 1024:.0f} / {theirs['open']['memory'] / 1024:.0f} KiB",
                *(f"{one['steady']['cpu'] / one['steady']['operations'] * 1e6:.0f} µs" for one in (ours, theirs)),
                f"{ours['steady']['memory'] / 1024:.0f} / {theirs['steady']['memory'] / 1024:.0f} KiB",
                f"{ours['idle']['wakes']} / {theirs['idle']['wakes']}",
                f"{ours['rotate']['seconds'] / growth.ROTATIONS * 1e3:.0f} ms",
                f"{ours['rotate']['superseded']} / {ours['rotate']['opened']}",
                f"{growth.cpu_for_each(ours['rotate']) * 1e3:.2f} ms",
                f"{ours['rotate']['memory'] / 1024:.0f} KiB",
            )
        )
    head = (
        *("pools x connections", "open", "CPU", "memory", "`SELECT 1`, CPU", "asyncpg's", "memory"),
        *("idle wake-ups in 3 s", "rotate", "superseded / logins", "CPU per login", "memory"),
    )
    return (
        "## What growth costs\n\nWhere a cell has two figures, the first is aiopqr's and the second that of asyncpg's "
        f"pool (except in *superseded / logins*). There are {growth.ROTATIONS} rotations, of each account in turn. "
        "*Rotate* is the mean time from fetching a new password until the last connection with the old one is "
        "replaced. *Superseded* counts the connections with an old password; these, the logins and the last *memory* "
        "are totals of all rotations. *Memory* is how much the process has grown by the end of a step.\n\n"
        + table(head, rows)
    )


def page(results: dict[str, Any]) -> str:
    """Everything that was measured against real servers, as one Markdown page."""
    about = results["about"]
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    judged = [
        one for name in ("churn", "steady", "rotation", "growth") for one in results.get(name, {}).get("targets", ())
    ]
    sections = {
        "churn": churn_section,
        "steady": steady_section,
        "rotation": rotation_section,
        "growth": growth_section,
    }
    parts = [
        (
            f"# Benchmarks\n\n`make bench{'-quick' if about['quick'] else ''}` wrote this page. Figures are medians of "
            f"{about['pairs']} rounds. In each round, all peers run one after another, in a new random order, on the "
            f"same machine as the server. (Rotation and growth have no rounds.) "
            f"The machine: {about['cpus']} x {about['cpu'] or 'CPU'}, {about['system']}, Python {about['python']}; "
            f"{packages}. Its load average was {about['load']:.1f} at the start.\n"
        ),
        "## Targets\n\nA target counts as missed only if it is missed by more than the control's spread.\n\n"
        + targets(judged)
        if judged
        else "",
        *(section(results[name], about) for name, section in sections.items() if name in results),
    ]
    return "\n".join(part for part in parts if part)


def without_series(result: dict[str, Any]) -> dict[str, Any]:
    """The fleet's figures without the series for each second, which are for the picture only."""
    plain: dict[str, Any] = as_json(result)
    for section in plain.values():
        for run in section.values() if isinstance(section, dict) else ():
            run.pop("series", None)
    return plain
