"""Shows the demo: a live display on a terminal, or else lines; and the result in words.

It measures nothing: all times come from the run.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from dataclasses import dataclass
from math import log10
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .load import SLOT, Slot
from .pools import Contestant
from .result import DemoResult, duration
from .run import Demo

_STYLES = {"rotation": "bold yellow", "good": "green", "bad": "bold red", "note": "dim"}
_MARKS = {"rotation": "⟳", "good": "✓", "bad": "✗", "note": "·"}
_PLAIN_MARKS = {"rotation": "*", "good": "+", "bad": "!", "note": "."}
_BARS = "▁▂▃▄▅▆▇█"
_REPORT_EVERY = 2.0


@dataclass(slots=True)
class _Line:
    at: float
    text: str
    kind: str
    count: int = 1


class LiveScreen:
    """A frame that is redrawn a few times a second, never taller than the terminal.

    Drawing takes milliseconds, and the load would have to wait. So it runs in a thread that is interrupted often.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._story: deque[_Line] = deque(maxlen=100)
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._live.update(Text("preparing the database ...", style="dim"))

    def __enter__(self) -> Self:
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(0.0005)
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()
        sys.setswitchinterval(self._switch_interval)

    def show(self, at: float, text: str, kind: str) -> None:
        if self._story and self._story[-1].text == text:
            self._story[-1].count += 1
        else:
            self._story.append(_Line(at, text, kind))

    async def draw(self, run: Demo) -> None:
        frame = self._frame(run)
        await asyncio.to_thread(lambda: self._live.update(frame, refresh=True))

    def _frame(self, run: Demo) -> RenderableType:
        width = min(self._console.width, 110)
        top = [self._title(run, width), self._progress(run, width), Text(), self._numbers(run), Text()]
        used = 3 + 7 + 1 + 3 + 2 + 1  # title, progress, gap; numbers; gap; pulse; panel's frame; the cursor's line
        lines = max(min(self._console.height - used, 16), 2)
        return Group(*top, self._pulse(run, width), self._panel(lines, width))

    def _title(self, run: Demo, width: int) -> RenderableType:
        options = run.options
        title = Text.assemble(
            ("aiopqr demo", "bold cyan"),
            f"  {options.workers} workers, {options.connections} connections replaced after {options.lifetime:g} s",
            (f"  Postgres {run.environment.server.version}", "dim"),
        )
        title.truncate(width, overflow="ellipsis")
        return title

    def _progress(self, run: Demo, width: int) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        done = min(run.at, run.options.seconds)
        bar = ProgressBar(run.options.seconds, done, width - 16, complete_style="cyan", finished_style="cyan")
        grid.add_row(bar, f"{run.at:4.1f} of {run.options.seconds:g} s")
        return grid

    def _numbers(self, run: Demo) -> RenderableType:
        table = Table.grid(padding=(0, 3, 0, 0))
        table.add_column(style="dim", min_width=17)
        labels = ("", "operations", "failed", "acquire p50, p99", "open connections", "", "refused logins")
        rows: list[list[RenderableType]] = [[label] for label in labels]
        for one in run.contestants:
            table.add_column(min_width=26)
            odd, even = one.open()
            # asyncpg's pool has only one account.
            accounts = (("odd ", odd), ("even", even)) if one.alternating else (("odd ", odd), None)
            cells: list[RenderableType] = [
                Text(one.name, style="bold cyan" if one.alternating else "bold"),
                f"{one.tally.operations:,}  [dim]{one.tally.rate():,.0f}/s[/]",
                Text(f"{one.tally.failed:,}", style="bold red" if one.tally.failed else "bold green"),
                _latencies(one),
                *(_dots(*account, one.alternating is not None) if account else "" for account in accounts),
                f"{one.refused_logins():,}",
            ]
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell)
        for row in rows:
            table.add_row(*row)
        return table

    def _pulse(self, run: Demo, width: int) -> RenderableType:
        """The slowest acquire at each moment, with a mark below for each password change."""
        slots = run.contestants[0].tally.slots
        room = width - 2
        per_column = max(1, -(-int(run.options.seconds / SLOT) // room))
        across = max(1, room // -(-int(run.options.seconds / SLOT) // per_column)) if per_column == 1 else 1
        columns = [slots[n : n + per_column] for n in range(0, len(slots), per_column)]
        bars = "".join(_bar(column) * across for column in columns)
        marks = [" "] * (len(columns) * across + 4)
        for at, rotation in run.done:
            where = int(at / SLOT / per_column) * across
            if where < len(marks):
                marks[where] = "B" if rotation.is_both else "o" if rotation.parities[0] == "odd" else "e"
        return Group(
            Text("slowest acquire, 0.1 ms to 1 s (log)   password changed: o odd, e even, B both", style="dim"),
            Text(bars[:room], style="cyan"),
            Text("".join(marks)[:room], style="bold yellow"),
        )

    def _panel(self, lines: int, width: int) -> RenderableType:
        rows = [
            Text.assemble(
                (f"{line.at:5.1f} s ", "dim"),
                (f"{_MARKS[line.kind]} {line.text}", _STYLES[line.kind]),
                (f"  x{line.count}" if line.count > 1 else "", "dim"),
                overflow="ellipsis",
                no_wrap=True,
            )
            for line in list(self._story)[-lines:]
        ]
        rows += [Text()] * (lines - len(rows))
        return Panel(Group(*rows), border_style="dim", width=width, padding=(0, 1))


class LineScreen:
    """A line for everything that happens, and one every two seconds: for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reported = 0.0

    def __enter__(self) -> Self:
        self._print("preparing the database ...")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def show(self, at: float, text: str, kind: str) -> None:
        self._print(f"{at:5.1f} s {_PLAIN_MARKS[kind]} {text}")

    async def draw(self, run: Demo) -> None:
        if run.at < self._reported + _REPORT_EVERY:
            return
        self._reported = run.at
        for one in run.contestants:
            odd, even = one.open()
            accounts = f"{odd} odd, {even} even" if one.alternating else f"{odd} odd"
            name = f"{one.name}: " if len(run.contestants) > 1 else ""
            self._print(
                f"{run.at:5.1f} s   {name}{one.tally.operations:,} operations, {one.tally.rate():,.0f}/s, "
                f"{one.tally.failed:,} failed; acquire {_latencies(one)}; {accounts} open; "
                f"{one.refused_logins():,} refused logins"
            )

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_result(console: Console, result: DemoResult) -> None:
    """Print the result in words, in the same way on a terminal and in a pipe."""
    console.print()
    console.print(Text(result.headline(), style="bold green" if result.passed else "bold red"), soft_wrap=True)
    for line in result.tried():
        console.print(line, highlight=False, markup=False)
    table = Table.grid(padding=(0, 3, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    if result.plain:
        table.add_column()
        table.add_row("", Text(result.ours.name, style="bold"), Text(result.plain.name, style="bold"))
    for label, ours, plain in result.rows():
        table.add_row(label, ours, *([plain] if result.plain else []))
    console.print(table, highlight=False)


def _latencies(one: Contestant) -> str:
    """The latencies of the last full second."""
    full = [slot.waits for slot in one.tally.slots[:-1][-2:] if slot.waits.count]
    if not full:
        return "-"
    p50, p99 = (max(waits.percentile(share) for waits in full) for share in (0.5, 0.99))
    return f"{duration(p50)}, {duration(p99)}"


def _dots(name: str, count: int, is_named: bool) -> RenderableType:
    style = "magenta" if name.startswith("odd") else "blue"
    shown = "●" * min(count, 16) + ("+" if count > 16 else "")
    return Text.assemble((f"{name} {count:3} ", "" if is_named else "dim"), (shown, style))


def _bar(slots: list[Slot]) -> str:
    """A bar from 0.1 ms to 1 s, on a logarithmic scale."""
    worst = max((slot.waits.worst for slot in slots), default=0.0)
    if not worst:
        return " "
    height = (log10(max(worst, 1e-4)) + 4) / 4
    return _BARS[min(int(height * len(_BARS)), len(_BARS) - 1)]
