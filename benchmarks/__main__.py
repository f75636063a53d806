"""``python -m benchmarks [all|quick|churn|steady|rotation|growth|fleet]``: measure, and write the results."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiopqr.testing import NotAvailable

from . import fleet_report, peers, report
from .measure import Verdict
from .scenarios import churn, fleet, growth, rotation, steady
from .scenarios.plan import Plan, Progress
from .stage import surroundings

RESULTS = Path(__file__).parent / "results"
SCENARIOS: dict[str, Callable[[Plan, Progress], Awaitable[dict[str, Any]]]] = {
    "churn": churn.measure,
    "steady": steady.measure,
    "rotation": rotation.measure,
    "growth": growth.measure,
    "fleet": fleet.measure,
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=["all", "quick", *SCENARIOS])
    parser.add_argument("--quick", action="store_true", help="a short run: fewer rounds and fewer points")
    parser.add_argument("--pairs", type=_count, help="number of interleaved rounds (default: 15; quick: 5)")
    parser.add_argument("--repetitions", type=_count, default=1, help="runs of each rotation phase (default: 1)")
    parser.add_argument("--every-tail", action="store_true", help="take 50,000 samples at every point (slow)")
    parser.add_argument("--no-tls", action="store_true", help="leave out TLS, if no server here supports it")
    parser.add_argument("--no-uvloop", action="store_true", help="use only asyncio's own event loop")
    parser.add_argument("--out", type=Path, help="folder for the results (benchmarks/results; quick: local/ in it)")
    return parser.parse_args(words)


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return count


def plan_of(options: argparse.Namespace) -> Plan:
    quick = options.quick or options.what == "quick"
    plan = (Plan.brief() if quick else Plan()).with_pairs(options.pairs)
    return replace(
        plan,
        every_tail=options.every_tail,
        tls=plan.tls and not options.no_tls,
        uvloop=not options.no_uvloop,
        repetitions=options.repetitions,
    )


async def measure(names: list[str], plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run the scenarios one after another. The machine should be otherwise idle."""
    if names != ["fleet"]:
        peers.check([*peers.PEERS, *(["uvloop"] if plan.uvloop and not plan.quick else [])])
    how = {name: getattr(plan, name) for name in ("quick", "pairs", "generations", "repetitions")}
    results: dict[str, Any] = {"about": {**surroundings(), **how}}
    for name in names:
        began = time.monotonic()
        results[name] = await SCENARIOS[name](plan, progress)
        results[name]["took"] = time.monotonic() - began
    return results


def write(results: dict[str, Any], directory: Path) -> list[Path]:
    """Write JSON, Markdown and pictures of everything that was measured."""
    from . import pictures

    written = []
    if measured := {name: value for name, value in results.items() if name not in ("fleet", "about")}:
        # If only one scenario was run, do not overwrite the page that shows all of them.
        stem = "benchmarks" if len(measured) == 4 else "-".join(measured)
        page = {"about": results["about"], **measured}
        report.write_json(page, directory / f"{stem}.json")
        (directory / f"{stem}.md").write_text(report.page(page))
        written += [directory / f"{stem}.json", directory / f"{stem}.md"]
    if "fleet" in results:
        report.write_json(report.without_series(results["fleet"]), directory / "fleet.json")
        (directory / "fleet.md").write_text(fleet_report.page(results["fleet"]))
        written += [directory / "fleet.json", directory / "fleet.md"]
    return written + pictures.draw(results, directory)


def judged(results: dict[str, Any]) -> list[Any]:
    return [one for result in results.values() if "targets" in result for one in result["targets"]]


def main(words: list[str] | None = None) -> int:
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display

    options = arguments(words)
    plan = plan_of(options)
    names = list(SCENARIOS) if options.what in ("all", "quick") else [options.what]
    out = options.out or (RESULTS / "local" if plan.quick else RESULTS)
    console = Console()
    columns = (TextColumn("{task.description:48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Display(*columns, console=console) as display:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = display.add_task(what, total=total)
            display.update(tasks[what], completed=done)

        try:
            out.mkdir(parents=True, exist_ok=True)  # a bad path fails now, not after the measurements
            results = asyncio.run(measure(names, plan, progress))
        except (peers.MissingPeer, NotAvailable, OSError) as exc:
            console.print("[bold red]Not measured:[/]", escape(str(exc)), highlight=False)
            return 2
        except KeyboardInterrupt:
            console.print("[bold red]Interrupted:[/] nothing was written")
            return 130
    paths = write(results, out)
    if found := judged(results):
        console.print(Markdown(report.targets(found)))
    console.print("written: " + ", ".join(str(path) for path in paths), soft_wrap=True, highlight=False)
    return int(any(one.verdict is Verdict.MISS for one in found) and not plan.quick)


if __name__ == "__main__":
    sys.exit(main())
