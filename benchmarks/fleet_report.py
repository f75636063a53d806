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
        "# A simulated fleet\n\n`make fleet` made this page. It runs the code that decides in aiopqr (alternation, "
        "refresh, lifetimes) as it is, in virtual time, against a simulated database and store. The store is AWS "
        f"Secrets Manager, which answers up to {DESCRIBE_LIMIT:,.0f} DescribeSecret and {GET_LIMIT:,.0f} "
        "GetSecretValue calls a second. A fetch is one DescribeSecret, and one GetSecretValue for each version that "
        "the instance has not seen. The store shows a new password 1 s after the database has it. Each instance keeps "
        "20 connections, and each run simulates an hour.\n\nThe runs assume the worst. **All instances start within "
        "one second**, except where a heading says otherwise, and a password changes in the middle of the wave in "
        "which all those connections are replaced for the first time. Where the store is down, the password changes "
        "nevertheless, although a rotator that writes to that store would wait.\n\n"
        "![Store calls, connects and failed logins a second](fleet.png)\n"
    )


def _scenes(result: dict[str, Any]) -> str:
    parts = [
        (
            "## What the fleet asks of the store and of the server\n\n*Calls* counts both kinds. *Busiest second* "
            "leaves out the start, which has a column of its own. *Failed logins* gives the mean for an instance and "
            "a rotation, and the most that any instance had from one rotation to the next.\n"
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
        "*Longest without a valid password*: for how long an instance held only passwords that had been changed. Its "
        "open connections stay in use meanwhile, and their replacements wait for the store.\n"
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
    days = " The table shows an hour and a day of the small fleets." if result["days"] else ""
    return (
        "## The figures scale\n\nWhat an instance asks for does not depend on the size of the fleet. So a day of a "
        f"large fleet, which would take too long to simulate, is like a day of a small one.{days} An hour's means "
        "include the wave after the common start, and its rotations fall into such a wave; over a day the waves "
        "flatten.\n\n"
        + table(
            ("instances", "calls a minute", "connects a minute", "failed logins a rotation", "fetches, busiest second"),
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
        "## Tokens\n\nAn instance fetches its next token when about two thirds of the current one's life have passed. "
        "Pools that share a refresher share the token.\n\n" + table(head, rows)
    )


def advice(result: dict[str, Any]) -> str:
    """Which lifetime and interval for which fleet."""
    return "\n".join(
        (
            "## Which lifetime and interval for which fleet\n",
            "For one instance with 20 connections, through one rotation at the worst moment:\n",
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
    head = ("`max_lifetime`", "`refresh_interval`", "calls a minute", "connects a minute", "failed logins a rotation")
    return table(head, rows)


def _failed(result: dict[str, Any], interval: int) -> str:
    run = result["sweep"][f"1800 {interval}"]
    return f"{run['failed_logins'] / run['instances']:.2f}"


def _advice_on_the_store(result: dict[str, Any]) -> list[str]:
    big = _largest(result)
    calm, worst = min(bearable(run) for run in big if not run["outage"]), min(map(bearable, big))
    return [
        (
            f"- **Up to {_round(worst):,} instances on one store, keep the defaults** (1800 s and 60 s). By the "
            "busiest seconds above, that many stay within the store's limits even after it was down while every "
            f"password changed. As long as the store is up, {_round(calm):,} do. Both figures are extrapolated."
        ),
        (
            "- **With more instances, lengthen `refresh_interval`, not `max_lifetime`.** The interval only decides "
            "how soon a pool notices a change before a login fails. With 900 s, a rotation that is not announced "
            f"costs an instance {_failed(result, 900)} failed logins instead of {_failed(result, 60)}: one refusal is "
            "enough to notice."
        ),
    ]


def _advice_on_failed_logins(result: dict[str, Any]) -> list[str]:
    starved = _starved(result)
    announced = [run for name, run in result["scenes"].items() if "announced" in name]
    lost = sum(run["failed_logins"] for run in announced)
    sizes = ", ".join(f"{size:,}" for size in sorted({run["instances"] for run in announced}))
    return [
        (
            "- **If your server, proxy or auditor counts failed logins, announce rotations**, as `aiopqr rotate` does "
            "by default: it waits for `--refresh-interval` plus 10 s between staging a password and setting it. In "
            f"the runs with an announcement, fleets of {sizes} instances had {lost:,} failed logins in all."
        ),
        (
            "- **If you cannot announce, shorten the interval**: an instance has "
            f"{_failed(result, 10)} failed logins a rotation with 10 s, and {_failed(result, 300)} with 300 s. "
            "(Supavisor, for one, blocks a client after 10.) With the store down while passwords change, one instance "
            f"had up to {starved['most_failed']}."
        ),
        (
            f"- **Leave more time between rotations than your store's longest outage.** With the store down while "
            f"every password changed, {starved['instances']:,} instances were without a valid password for up to "
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
            f"- **Roll a large fleet out over minutes.** {largest['instances']:,} instances that start within a "
            f"second make {largest['describes_peak_start']:,} DescribeSecret and {largest['gets_peak_start']:,} "
            f"GetSecretValue calls and open {largest['connects_peak_start']:,} connections in one second; "
            f"{largest['throttled']:,} of the calls were throttled."
        ),
        (
            "- **If a fleet must start together, raise `max_lifetime_jitter`**: its connections are replaced "
            "together, one lifetime later, and the jitter spreads them.\n"
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
