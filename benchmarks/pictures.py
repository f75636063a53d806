"""Draws the pictures in the documentation. A separate module, since matplotlib is slow to import and needed last."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measure import Spread
from .scenarios import churn, rotation, steady

OURS, OTHER, LIMIT = "#0b7285", "#adb5bd", "#dee2e6"


def _plt() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "figure.dpi": 150}
    )
    return pyplot


def draw(results: dict[str, Any], directory: Path) -> list[Path]:
    """Draw every picture for which ``results`` has the figures."""
    drawn = []
    for name, wanted, picture in (
        ("speed.png", ("churn", "steady"), _speed),
        ("rotation.png", ("rotation",), _rotation),
        ("fleet.png", ("fleet",), _fleet),
    ):
        if all(one in results for one in wanted):
            figure = picture(_plt(), results)
            figure.savefig(directory / name)
            _plt().close(figure)
            drawn.append(directory / name)
    return drawn


def _bars(
    axis: Any, title: str, names: Sequence[str], spreads: Sequence[Spread], scale: float, limits: set[str]
) -> None:
    colors = [OURS if name.startswith("aiopqr") else LIMIT if name in limits else OTHER for name in names]
    middle = [spread.median * scale for spread in spreads]
    reach = [
        [(spread.median - spread.low) * scale for spread in spreads],
        [(spread.high - spread.median) * scale for spread in spreads],
    ]
    axis.barh(names, middle, xerr=reach, color=colors, error_kw={"elinewidth": 0.8, "ecolor": "#495057"})
    axis.invert_yaxis()
    axis.set_title(title, loc="left")
    top = max(value + more for value, more in zip(middle, reach[1], strict=True))
    for place, (value, more) in enumerate(zip(middle, reach[1], strict=True)):
        axis.text(value + more + top * 0.01, place, f"{value:,.3g}" if value < 100 else f"{value:,.0f}", va="center")
    axis.set_xlim(0, top * 1.2)
    axis.locator_params(axis="x", nbins=4)


def _speed(plt: Any, results: dict[str, Any]) -> Any:
    churning = next(p for p in results["churn"]["points"] if (p["tasks"], p["how"], p["loop"]) == churn.MAIN)["peers"]
    figure, grid = plt.subplots(2, 2, figsize=(11, 6), layout="constrained")
    axes = grid.ravel()
    names = [name for name in churning if name != churn.CONTROL]
    limits = {churn.TRUST, steady.BARE}
    rates = [churning[name]["rate"] for name in names]
    _bars(axes[0], "new connections per second, 8 at a time, SCRAM", names, rates, 1, limits)
    spent = [name for name in names if name != churn.PGBENCH]
    cpus = [churning[name]["cpu"] for name in spent]
    _bars(axes[1], "client CPU per new connection, ms", spent, cpus, 1e3, limits)
    for axis, point, title in (
        (axes[2], steady.MAIN, "SELECT 1 per second, 10 tasks on 10 connections"),
        (axes[3], steady.NEAR, "SELECT 1 per second, 1 task, round trip 1 ms"),
    ):
        used = next(
            one["peers"]
            for one in results["steady"]["points"]
            if all(one[name] == value for name, value in point._asdict().items())
        )
        names = [name for name in used if name != steady.CONTROL]
        _bars(axis, title, names, [used[name]["rate"] for name in names], 1, limits)
    return figure


def _rotation(plt: Any, results: dict[str, Any]) -> Any:
    points = results["rotation"]["points"]
    figure, axis = plt.subplots(figsize=(11, 4.2), layout="constrained")
    names = [
        name
        for name in rotation.PEERS
        if any(name in p["peers"] for p in points) and name not in (rotation.NO_LIFETIME, rotation.CONTROL)
    ]
    shades = [OURS, *("#f08c00", "#e8590c", "#7048e8", "#495057")]
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        for place, point in enumerate(points):
            if name not in point["peers"]:
                continue
            peer = point["peers"][name]
            left = place - 0.4 + width * (number + 0.5)
            label = name if place == 0 else None
            axis.bar(left, peer["gap"] * 1e3, width * 0.9, color=shades[number % len(shades)], label=label)
            if errors := max(peer["errors"]):
                axis.text(left, peer["gap"] * 1e3, f"{errors}", ha="center", va="bottom", fontsize=8, color="#c92a2a")
    axis.set_yscale("log")
    axis.set_ylabel("longest time without service, ms")
    labels = [textwrap.fill(point["phase"].replace("`", ""), 22) for point in points]
    axis.set_xticks(range(len(points)), labels, fontsize=7.5)
    axis.set_title("while passwords change (in red: errors that reach the application)", loc="left")
    axis.legend(frameon=False, ncols=3, fontsize=8)
    return figure


def _fleet(plt: Any, results: dict[str, Any]) -> Any:
    drawn = ("one rotation", "one rotation, announced 70 s ahead", "one rotation, the store down for 20 minutes")
    scenes = {
        name: run
        for name, run in results["fleet"]["scenes"].items()
        if "series" in run and name.split(": ", 1)[1] in drawn
    }
    figure, axes = plt.subplots(
        3, len(scenes), figsize=(3.4 * len(scenes), 6), layout="constrained", sharex=True, sharey="row", squeeze=False
    )
    kinds = (("calls", "store calls/s"), ("connects", "connects/s"), ("failed", "failed logins/s"))
    for column, (name, run) in enumerate(scenes.items()):
        axes[0, column].set_title(textwrap.fill(name.split(": ", 1)[1], 30), loc="left", fontsize=9)
        for row, (kind, label) in enumerate(kinds):
            axis, series = axes[row, column], run["series"][kind]
            axis.plot([second / 60 for second in range(len(series))], series, color=OURS, linewidth=0.8)
            axis.set_yscale("symlog", linthresh=1)
            axis.set_ylim(bottom=0)
            if run["outage"]:
                axis.axvspan(*(when / 60 for when in run["outage"]), color="#ffe3e3", linewidth=0)
            if column == 0:
                axis.set_ylabel(label)
        axes[2, column].set_xlabel("minutes")
    size = next(iter(scenes.values()))["instances"]
    figure.suptitle(f"{size:,} instances with 20 connections each (red: the store is down)", x=0.01, ha="left")
    return figure
