"""The demo's picture: acquire latency over time, with a mark for each password change.

matplotlib is optional and slow to import, so it is imported only when the run is over.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ...credentials import Parity
from .load import SLOT, Slot, Tally
from .run import Demo

_INK, _FAINT = "#24292f", "#8b949e"
_OURS, _PLAIN, _FAILED = "#0969da", "#bc4c00", "#cf222e"
_ACCOUNTS = {Parity.ODD: "#8250df", Parity.EVEN: "#1a7f37"}


class NoPicture(Exception):
    """The picture could not be drawn. The text says why."""


def draw(run: Demo, path: Path) -> None:
    """Write the picture, in the format that the path's suffix names. Raises :class:`NoPicture`."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # otherwise it logs about its font cache
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise NoPicture("matplotlib is not installed: pip install 'aiopqr[demo]'") from None
    style: Any = {
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "svg.fonttype": "none",  # keep text as text
        "svg.hashsalt": "aiopqr",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained", facecolor="white")
        ratios = (3, 1.3, 1.3)
        latency, throughput, accounts = figure.subplots(3, 1, sharex=True, height_ratios=ratios)
        for axes in (latency, throughput, accounts):
            _mark_rotations(axes, run)
        _latency(latency, run)
        _throughput(throughput, run)
        _connections(accounts, run)
        _label_rotations(latency, run)
        accounts.set_xlim(0, run.at)
        accounts.set_xlabel("seconds")
        ours = run.contestants[0].tally
        title = f"{len(run.done)} password rotations under load: {ours.operations:,} operations, {ours.failed:,} failed"
        figure.suptitle(title, fontweight="bold")
        try:
            figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
        except (OSError, ValueError) as exc:
            raise NoPicture(str(exc)) from None


def _slots(tally: Tally, run: Demo) -> list[tuple[float, Slot]]:
    """Each complete slot, with the middle of its time."""
    return [((number + 0.5) * SLOT, slot) for number, slot in enumerate(tally.slots) if (number + 1) * SLOT <= run.at]


def _latency(axes: Any, run: Demo) -> None:
    for one in run.contestants:
        color, name = (_OURS, "aiopqr") if one.alternating else (_PLAIN, one.name)
        served = [(at, slot.waits) for at, slot in _slots(one.tally, run) if slot.waits.count]
        times = [at for at, _ in served]
        for share, label, width, alpha in ((0.5, "p50", 1.2, 0.55), (0.99, "p99", 2.0, 1.0)):
            axes.plot(
                times,
                [waits.percentile(share) * 1000 for _, waits in served],
                color=color,
                linewidth=width,
                alpha=alpha,
                label=f"{name} {label}",
            )
        axes.plot(
            times,
            [waits.worst * 1000 for _, waits in served],
            linestyle="none",
            marker=".",
            markersize=4,
            color=color,
            alpha=0.55,
            label=f"{name} slowest",
        )
    axes.set_yscale("log")
    axes.set_ylabel("acquire, ms")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color="#eaeef2")
    axes.set_axisbelow(True)
    axes.set_ylim(top=axes.get_ylim()[1] * 5 ** len(run.contestants))  # room for the legend
    _legend(axes, 3)


def _throughput(axes: Any, run: Demo) -> None:
    for one in run.contestants:
        color = _OURS if one.alternating else _PLAIN
        slots = _slots(one.tally, run)
        times = [at for at, _ in slots]
        axes.plot(times, [slot.operations / SLOT for _, slot in slots], color=color, linewidth=1.6, label=one.name)
        failed = [slot.failed / SLOT for _, slot in slots]
        if any(failed):
            axes.fill_between(times, failed, color=_FAILED, alpha=0.35, linewidth=0, step="mid", label="failed")
        served = [at for at, slot in slots if slot.operations]
        if served and served[-1] + 2 < run.at:
            axes.annotate(
                f"{one.name} no longer serves anything",
                (served[-1], 0),
                xytext=(8, 12),
                textcoords="offset points",
                color=color,
                fontsize=9,
            )
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.3)
    axes.set_ylabel("operations/s")
    _legend(axes, 3)


def _connections(axes: Any, run: Demo) -> None:
    one = run.contestants[0]
    slots = _slots(one.tally, run)
    series = [slot.odd for _, slot in slots], [slot.even for _, slot in slots]
    labels = [f"{parity}'s connections" for parity in Parity]
    axes.stackplot(
        [at for at, _ in slots], *series, colors=list(_ACCOUNTS.values()), alpha=0.5, labels=labels, linewidth=0
    )
    axes.set_ylim(0, run.options.connections * 1.35)
    axes.set_ylabel("open")
    _legend(axes, 2)


def _mark_rotations(axes: Any, run: Demo) -> None:
    for at, rotation in run.done:
        axes.axvline(at, color=_FAILED if rotation.is_both else _FAINT, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0)
        if rotation.store_delay:
            axes.axvspan(at, at + rotation.store_delay, color=_FAILED, alpha=0.08, linewidth=0, zorder=0)


def _label_rotations(axes: Any, run: Demo) -> None:
    for at, rotation in run.done:
        label = f"both, file {rotation.store_delay:g} s late" if rotation.is_both else str(rotation.parities[0])
        axes.annotate(
            label,
            (at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, 2),
            textcoords="offset points",
            color=_FAILED if rotation.is_both else _INK,
            fontsize=8,
        )


def _legend(axes: Any, columns: int) -> None:
    axes.legend(loc="upper right", ncols=columns, fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
