"""Writes the page about the simulated fleets: tables, and advice whose figures come from the results."""

from __future__ import annotations

from typing import Any

from .fleet import DESCRIBE_LIMIT, GET_LIMIT
from .report import table
from .scenarios.fleet import DAY, INTERVALS, LIFETIMES, SCENES


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join((_about(), _scenes(result), _scaling(result), _tokens(result), advice(result)))


def _about() -> str:
    return (
        "# A simulated fleet\n\n`make fleet` wrote this page. It runs aiopqr's own decision-making code (alternation, "
        "refresh, lifetimes) in virtual time, against a simulated database and store. The store is AWS Secrets "
        f"Manager, which answers up to {DESCRIBE_LIMIT:,.0f} DescribeSecret and {GET_LIMIT:,.0f} "
        "GetSecretValue calls a second. A fetch is one DescribeSecret, and one GetSecretValue for each version that "
        "the instance has not seen. The store shows a new password 1 s after the database has it. Each instance keeps "
        "20 connections, and most runs simulate one hour.\n\nThe runs assume the worst. **All instances start within "
        "one second**, except where a heading says otherwise, and a password changes in the middle of the wave in "
        "which all those connections are replaced for the first time. Where the store is down, the password changes "
        "anyway, although a rotator that writes to that store would wait.\n\n"
        "![Store calls, connects and failed logins a second](fleet.png)\n"
    )


def _scenes(result: dict[str, Any]) -> str:
    parts = [
        (
            "## What the fleet asks of the store and of the server\n\n*Calls* counts both kinds. *Busiest second* "
            "leaves out the start, which has its own column. *Failed logins* gives the mean per instance and rotation, "
            "and the most that any instance had from one rotation to the next.\n"
        )
    ]
    for scene in SCENES:
        rows = []
        for name, run in result["scenes"].items():
            if name.split(": ", 1)[1] == scene:
                rows.append(
                    (
                        f"{run['instances']:,}",
                        f"{run['calls_mean']:,.1f}",
                        f"{run['describes_peak']:,} + {run['gets_peak']:,}",
                        f"{run['describes_peak_start']:,} + {run['gets_peak_start']:,}",
                        f"{run['throttled']:,}",
                        f"{run['connects_mean']:,.1f}",
                        f"{run['connects_peak']:,}",
                        f"{run['connects_peak_start']:,}",
                        f"{run['failed_logins'] / run['instances'] / run['rotations']:.2f}; {run['most_failed']}",
                        f"{run['failed_peak']:,}",
                        f"{run['worst_stale']:,.0f} s",
                        f"{run['waited']:,}",
                    )
                )
        head = (
            *("instances", "calls/s", "busiest second", "at the start", "throttled"),
            *("connects/s", "busiest second", "at the start"),
            *(
                "failed logins: mean; most",
                "busiest second",
                "longest without a valid password",
                "replacements that waited",
            ),
        )
        if rows:
            parts.append(f"### {scene[0].upper()}{scene[1:]}\n\n" + table(head, rows))
    parts.append(
        "*Longest without a valid password* is the longest time for which an instance had only passwords that were no "
        "longer valid. Meanwhile its open connections stay in use, and their replacements wait for the store.\n"
    )
    return "\n".join(parts)


def _scaling(result: dict[str, Any]) -> str:
    rows = []
    for name, run in [*result["scenes"].items(), *result["days"].items()]:
        scene = name.split(": ", 1)[1]
        if scene in list(SCENES)[:2]:
            each = run["instances"]
            rows.append(
                (
                    f"{scene}: {each:,}, {'a day' if run['duration'] == DAY else 'an hour'}",
                    f"{run['calls_mean'] / each * 60:.2f}",
                    f"{run['connects_mean'] / each * 60:.2f}",
                    f"{run['failed_logins'] / each / run['rotations']:.2f}",
                    f"{run['describes_peak'] / each:.2f}",
                )
            )
    days = " The table shows an hour of each fleet, and a day of the small ones." if result["days"] else ""
    return (
        "## The figures scale\n\nWhat an instance asks for does not depend on the size of the fleet. So a day of a "
        f"large fleet, which would take too long to simulate, is like a day of a small one.{days} An hour's means "
        "include the wave of replacements after the common start, and its rotations fall into such a wave. Over a day, "
        "the waves flatten.\n\n"
        + table(
            ("instances", "calls/min", "connects/min", "failed logins per rotation", "fetches, busiest second"),
            rows,
        )
    )


def _tokens(result: dict[str, Any]) -> str:
    rows = [
        (
            f"{run['instances']:,}",
            name.split(": ", 1)[1],
            f"{run['asked_mean']:,.1f}",
            f"{run['asked_peak']:,}",
            f"{run['asked_peak_start']:,}",
            f"{run['longest_without']:,.0f} s",
        )
        for name, run in result.get("tokens", {}).items()
    ]
    if not rows:
        return ""
    head = ("instances", "scene", "tokens/s", "busiest second", "at the start", "longest without a token")
    return (
        "## Tokens\n\nAn instance fetches its next token after about two thirds of the current one's lifetime. Pools "
        "that share a refresher share the token.\n\n" + table(head, rows)
    )


def advice(result: dict[str, Any]) -> str:
    """Which lifetime and interval suit which fleet."""
    return "\n".join(
        (
            "## Which lifetime and interval for which fleet\n",
            "Per instance with 20 connections, with one rotation at the worst moment:\n",
            _sweep(result),
            *_advice_on_the_store(result),
            *_advice_on_failed_logins(result),
            *_advice_on_starts(result),
        )
    )


def _sweep(result: dict[str, Any]) -> str:
    rows = [
        (
            f"{lifetime:g} s",
            f"{interval:g} s",
            f"{run['calls_mean'] / run['instances'] * 60:.2f}",
            f"{run['connects_mean'] / run['instances'] * 60:.2f}",
            f"{run['failed_logins'] / run['instances']:.2f}",
        )
        for lifetime in LIFETIMES
        for interval in INTERVALS
        for run in [result["sweep"][f"{lifetime:g} {interval:g}"]]
    ]
    head = ("`max_lifetime`", "`refresh_interval`", "calls/min", "connects/min", "failed logins per rotation")
    return table(head, rows)


def _failed(result: dict[str, Any], interval: int) -> str:
    run = result["sweep"][f"1800 {interval}"]
    return f"{run['failed_logins'] / run['instances']:.2f}"


def _advice_on_the_store(result: dict[str, Any]) -> list[str]:
    big = _largest(result)
    calm, worst = min(bearable(run) for run in big if not run["outage"]), min(map(bearable, big))
    return [
        (
            f"- **With up to {_round(worst):,} instances on one store, keep the defaults** (1800 s and 60 s). "
            "According to the busiest seconds above, that many stay within the store's limits even if every password "
            f"changes while it is down. As long as it is up, {_round(calm):,} do. Both figures are extrapolated."
        ),
        (
            "- **With more instances, lengthen `refresh_interval`, not `max_lifetime`.** The interval only decides "
            "how often a pool notices a change before a login fails. With 900 s, an unannounced rotation costs an "
            f"instance {_failed(result, 900)} failed logins, compared with {_failed(result, 60)} with 60 s, since a "
            "pool notices the change at the first refusal."
        ),
    ]


def _advice_on_failed_logins(result: dict[str, Any]) -> list[str]:
    starved = _starved(result)
    announced = [run for name, run in result["scenes"].items() if "announced" in name]
    lost = sum(run["failed_logins"] for run in announced)
    sizes = ", ".join(f"{size:,}" for size in sorted({run["instances"] for run in announced}))
    sizes = " and ".join(sizes.rsplit(", ", 1))
    return [
        (
            "- **If your server, proxy or auditor counts failed logins, announce rotations**, as `aiopqr rotate` does "
            "by default: it waits for `--refresh-interval` plus 10 s between staging a password and setting it. In "
            f"the runs with an announcement, fleets of {sizes} instances had {lost:,} failed logins in total."
        ),
        (
            "- **If you cannot announce, shorten the interval**: an instance has "
            f"{_failed(result, 10)} failed logins per rotation with 10 s, and {_failed(result, 300)} with 300 s. "
            "(Supavisor, for example, blocks a client after 10.) If passwords changed while the store was down, an "
            f"instance had up to {starved['most_failed']}."
        ),
        (
            f"- **Space rotations by more than your longest store outage.** When every password changed while the "
            f"store was down, {starved['instances']:,} instances were without a valid password for up to "
            f"{starved['worst_stale']:,.0f} s."
        ),
    ]


def _advice_on_starts(result: dict[str, Any]) -> list[str]:
    largest = _largest(result)[0]
    first = next(iter(result["jitter"].values()))
    rows = [
        (f"{float(share):.0%}", f"{run['connects_peak']:,}", f"{run['connects_peak'] / first['connects_peak']:.0%}")
        for share, run in result["jitter"].items()
    ]

    def connects(lifetime: int) -> str:
        run = result["sweep"][f"{lifetime} 60"]
        return f"{run['connects_mean'] / run['instances'] * 60:.2f}"

    return [
        (
            f"- **If your server is short of CPU, lengthen `max_lifetime`**: an instance opens {connects(600)} "
            f"connections a minute with 600 s, and {connects(7200)} with 7200 s."
        ),
        (
            f"- **Roll out a large fleet over several minutes.** {largest['instances']:,} instances that started "
            f"within a second made up to {largest['describes_peak_start']:,} DescribeSecret and "
            f"{largest['gets_peak_start']:,} GetSecretValue calls in one second, and opened up to "
            f"{largest['connects_peak_start']:,} connections; {largest['throttled']:,} calls were throttled."
        ),
        (
            "- **If a fleet must start together, raise `max_lifetime_jitter`**: its connections would all be "
            "replaced at once, one lifetime later. The jitter spreads that out.\n"
        ),
        table(
            (
                "`max_lifetime_jitter`, as a share of the lifetime",
                f"connects in the busiest second, {first['instances']:,} instances",
                "compared with the first row",
            ),
            rows,
        ),
    ]


def _largest(result: dict[str, Any]) -> list[dict[str, Any]]:
    most = max(run["instances"] for run in result["scenes"].values())
    return [run for run in result["scenes"].values() if run["instances"] == most]


def _starved(result: dict[str, Any]) -> dict[str, Any]:
    """The largest fleet whose store was down while every password changed."""
    candidates = (run for run in result["scenes"].values() if run["outage"] and run["rotations"] > 1)
    return max(candidates, key=lambda run: run["instances"])


def bearable(run: dict[str, Any]) -> float:
    """How large a fleet could be before its busiest second, after the start, exceeds the store's limits."""
    most = max(run["describes_peak"] / DESCRIBE_LIMIT, run["gets_peak"] / GET_LIMIT)
    return float(run["instances"] / most)


def _round(value: float) -> int:
    """Round down to one significant digit."""
    digits: int = 10 ** (len(str(int(value))) - 1)
    return int(value) // digits * digits
