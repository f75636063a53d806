"""What the simulated fleets come to, in tables and in advice whose figures are filled in from the results."""

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
        "# A fleet, simulated\n\n`make fleet` made this page. The machines that decide in aiopqr (alternation, "
        "refresh, lifetimes) run here as they are, in virtual time; database and store are simulated. The "
        f"store is AWS Secrets Manager, with its limits of {DESCRIBE_LIMIT:,.0f} DescribeSecret and "
        f"{GET_LIMIT:,.0f} GetSecretValue a second: a fetch is one of the former, and one of the latter for "
        "each version that is new to the instance. It shows a new password 1 s after the database has it. "
        "Every instance keeps 20 connections. **All instances start within one second**, unless said otherwise "
        "(one whose first fetch fails tries again, as a service does that is started again), and passwords "
        "change in the middle of the wave in which all those connections are replaced for the first time: the "
        "worst moment there is. With the store down, the password still changes, which no rotator that writes "
        "to that store would do. An hour is simulated.\n\n![store calls, connects and failed "
        "logins](fleet.png)\n"
    )


def _scenes(result: dict[str, Any]) -> str:
    parts = [
        (
            "## What the fleet asks of the store and of the server\n\nBusiest seconds are those after the "
            "start, but for the start's own. *Calls* are of both kinds together. *Failed logins* are the mean "
            "of all instances for each rotation, and the most that one instance had between two.\n"
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
            *("failed logins: mean; most", "busiest second", "longest wholly stale", "replacements that waited"),
        )
        if rows:
            parts.append(f"### {scene[0].upper()}{scene[1:]}\n\n" + table(head, rows))
    parts.append(
        "*Wholly stale*: none of the passwords that the instance holds is in force. Its open connections serve on, and "
        "what it would replace them with waits for the store.\n"
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
    days = " A day of the small fleets stands beside their hour." if result["days"] else ""
    return (
        "## The figures scale\n\nFor each instance, whatever the size. So a day of the largest fleet, which "
        f"would take too long to simulate, is what a day of the small ones is.{days} (The hour's means have the "
        "common start's wave in them, and its failed logins are those of the rotations that fall into a wave; "
        "in a day the waves flatten.)\n\n"
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
        "## Tokens\n\nFor each instance, a token is fetched when about two thirds of the one before have passed, "
        "and once for all pools that share a refresher.\n\n" + table(head, rows)
    )


def advice(result: dict[str, Any]) -> str:
    """Which lifetime and interval for which fleet."""
    sweep = result["sweep"]
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
        for run in [sweep[f"{lifetime:g} {interval:g}"]]
    ]
    first = next(iter(result["jitter"].values()))
    waves = [
        (f"{float(share):.0%}", f"{run['connects_peak']:,}", f"{run['connects_peak'] / first['connects_peak']:.0%}")
        for share, run in result["jitter"].items()
    ]
    scenes = result["scenes"].values()
    largest = max(scenes, key=lambda run: run["instances"])
    starved = max((run for run in scenes if run["outage"] and run["rotations"] > 1), key=lambda r: r["instances"])
    big = [run for run in scenes if run["instances"] == largest["instances"]]
    calm = min(bearable(run) for run in big if not run["outage"])
    worst = min(map(bearable, big))

    def failed(lifetime: int, interval: int) -> str:
        run = sweep[f"{lifetime} {interval}"]
        return f"{run['failed_logins'] / run['instances']:.2f}"

    def connects(lifetime: int) -> str:
        run = sweep[f"{lifetime} 60"]
        return f"{run['connects_mean'] / run['instances'] * 60:.2f}"

    return "\n".join(
        (
            "## Which lifetime and interval for which fleet\n",
            "For each instance of 20 connections, through one rotation at the worst moment:\n",
            table(
                (
                    *("`max_lifetime`", "`refresh_interval`", "calls a minute", "connects a minute"),
                    "failed logins a rotation",
                ),
                rows,
            ),
            (
                f"- **Up to {_round(worst):,} instances on one store: leave both as they are** (1800 s, 60 s). "
                "By the busiest seconds above, that many stay within the store's limits even when it was down "
                f"while every password changed; {_round(calm):,} do as long as it is up, by extrapolation."
            ),
            (
                "- **Above that, lengthen `refresh_interval`, not `max_lifetime`.** The interval is only what "
                "notices a rotation before a login fails: with 900 s a rotation costs an instance "
                f"{failed(1800, 900)} failed logins instead of {failed(1800, 60)}, since one refusal is enough "
                "to know."
            ),
            (
                "- **A server that counts failed logins** (Supavisor blocks after 10, proxies and auditors "
                f"alarm): a short interval, {failed(1800, 10)} failed logins an instance and rotation with 10 "
                f"s, {failed(1800, 300)} with 300 s. With the store down while passwords change, one instance "
                f"had up to {starved['most_failed']}."
            ),
            (
                f"- **A server short of processors**: a long lifetime. {connects(600)} connects a minute and "
                f"instance with 600 s, {connects(7200)} with 7200 s."
            ),
            (
                "- **A fleet that starts together** has its connections replaced together, a lifetime later. "
                "Spread that by `max_lifetime_jitter`:\n"
            ),
            table(
                (
                    "`max_lifetime_jitter`, of the lifetime",
                    f"busiest second's connects, {first['instances']:,} instances",
                    "of the first",
                ),
                waves,
            ),
            (
                f"- **Starting {largest['instances']:,} within a second** asks "
                f"{largest['describes_peak_start']:,} DescribeSecret and {largest['gets_peak_start']:,} "
                f"GetSecretValue of the store in a second, of which {largest['throttled']:,} were throttled, "
                f"and {largest['connects_peak_start']:,} connections of the servers: roll it out over minutes."
            ),
            (
                f"- **The store down while every password changes**: {starved['instances']:,} instances were wholly "
                f"stale for up to {starved['worst_stale']:,.0f} s. Leave at least an outage's length between them.\n"
            ),
        )
    )


def bearable(run: dict[str, Any]) -> float:
    """How many instances keep the busiest second, after the start, within the store's limits."""
    most = max(run["describes_peak"] / DESCRIBE_LIMIT, run["gets_peak"] / GET_LIMIT)
    return float(run["instances"] / most)


def _round(value: float) -> int:
    """Down to one digit that counts."""
    digits: int = 10 ** (len(str(int(value))) - 1)
    return int(value) // digits * digits
