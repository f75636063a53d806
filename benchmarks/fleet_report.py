"""What the simulated fleets come to, in tables and in advice whose figures are filled in from the results."""

from __future__ import annotations

from typing import Any

from .fleet import STORE_LIMIT
from .report import table
from .scenarios.fleet import DAY, INTERVALS, LIFETIMES, SCENES

SERVER_CPU = 0.007  # seconds for one connection: measured, see the benchmarks


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join((_about(), _scenes(result), _scaling(result), advice(result)))


def _about() -> str:
    return (
        "# A fleet, simulated\n\n`make fleet` made this page. The machines that decide in aiopqr (alternation, "
        "refresh, lifetimes) run here as they are, in virtual time; database and store are simulated: a store that "
        f"answers {STORE_LIMIT:,.0f} calls a second, as AWS Secrets Manager does, and shows a new password 1 s after "
        "the database has it; one call for each fetch. Every instance keeps 20 connections. **All instances start at "
        "the same moment**, and passwords change in the middle of the wave in which all those connections are "
        "replaced for the first time: the worst moment there is. With the store down, the password still changes, "
        "which no rotator that writes to that store would do. An hour is simulated.\n\n![store calls, connects and "
        "failed logins](fleet.png)\n"
    )


def _scenes(result: dict[str, Any]) -> str:
    parts = ["## What the fleet asks of the store and of the server\n"]
    for scene in SCENES:
        rows = []
        for name, run in result["scenes"].items():
            if name.split(": ", 1)[1] == scene:
                rotations = run["rotations"]
                rows.append(
                    (
                        f"{run['instances']:,}",
                        f"{run['calls_mean']:,.1f}",
                        f"{run['calls_peak']:,}",
                        f"{run['calls_peak_start']:,}",
                        f"{run['connects_mean']:,.1f}",
                        f"{run['connects_peak']:,}",
                        f"{run['failed_logins'] / run['instances'] / rotations:.2f}",
                        f"{run['failed_peak']:,}",
                        f"{run['worst_stale']:,.0f} s",
                        f"{run['waited']:,}",
                    )
                )
        head = (
            *("instances", "store calls/s", "peak", "at the start", "connects/s", "peak"),
            *("failed logins, an instance and rotation", "peak/s", "longest wholly stale", "waits for the store"),
        )
        if rows:
            parts.append(f"### {scene[0].upper()}{scene[1:]}\n\n" + table(head, rows))
    parts.append(
        "*Wholly stale*: none of the passwords that the instance holds is in force. Its open connections serve on, and "
        "what it would replace them with waits for the store.\n"
    )
    return "\n".join(parts)


def _scaling(result: dict[str, Any]) -> str:
    scene = next(iter(SCENES))
    rows = []
    for name, run in [*result["scenes"].items(), *result["days"].items()]:
        if name.endswith(f": {scene}") or run["duration"] == DAY:
            each = run["instances"]
            span = "a day" if run["duration"] == DAY else "an hour"
            rows.append(
                (
                    f"{each:,}, {span}",
                    f"{run['calls_mean'] / each * 60:.2f}",
                    f"{run['connects_mean'] / each * 60:.2f}",
                    f"{run['failed_logins'] / each / run['rotations']:.2f}",
                )
            )
    days = " A day of the small fleets stands beside their hour." if result["days"] else ""
    return (
        "## The figures scale\n\nFor each instance, whatever the size. So a day of the largest fleet, which would "
        f"take too long to simulate, is its hour over again.{days} (The hour's means have the common start's wave in "
        "them.)\n\n"
        + table(("instances", "store calls a minute", "connects a minute", "failed logins a rotation"), rows)
    )


def advice(result: dict[str, Any]) -> str:
    """Which lifetime and interval for which fleet."""
    sweep = result["sweep"]
    rows = []
    for lifetime in LIFETIMES:
        for interval in INTERVALS:
            run = sweep[f"{lifetime:g} {interval:g}"]
            each = run["instances"]
            rows.append(
                (
                    f"{lifetime:g} s",
                    f"{interval:g} s",
                    f"{run['calls_mean'] / each * 60:.2f}",
                    f"{run['connects_mean'] / each * 60:.2f}",
                    f"{run['failed_logins'] / each:.2f}",
                    f"{STORE_LIMIT / (run['calls_mean'] / each):,.0f}",
                )
            )
    usual = sweep["1800 60"]
    calls, connects = (usual[key] / usual["instances"] for key in ("calls_mean", "connects_mean"))
    waves = [
        (f"{float(share):.0%}", f"{run['connects_peak'] / run['instances'] * 1000:,.0f}")
        for share, run in result["jitter"].items()
    ]
    largest = max(result["scenes"].values(), key=lambda run: run["instances"])
    starved = next(
        run
        for name, run in result["scenes"].items()
        if run["instances"]
        == max(r["instances"] for r in result["scenes"].values() if r["outage"] and r["rotations"] > 1)
        and run["outage"]
        and run["rotations"] > 1
    )
    jitter = list(result["jitter"].values())
    calmer = jitter[2]["connects_peak"] / jitter[0]["connects_peak"]
    return "\n".join(
        (
            "## Which lifetime and interval for which fleet\n",
            "For each instance of 20 connections, through one rotation at the worst moment:\n",
            table(
                (
                    *("`max_lifetime`", "`refresh_interval`", "store calls a minute", "connects a minute"),
                    *("failed logins a rotation", "instances that a store of 10,000/s bears"),
                ),
                rows,
            ),
            (
                f"- **Up to {_round(STORE_LIMIT / 10 / calls):,} instances on one store: leave both as they are** "
                f"(1800 s, 60 s). That many ask {STORE_LIMIT / 10:,.0f} calls a second of the store, a tenth of its "
                f"limit, and {_round(STORE_LIMIT / 10 / calls) * connects:,.0f} connects a second of their servers, "
                f"about {_round(STORE_LIMIT / 10 / calls) * connects * SERVER_CPU:.1f} processors' worth at 7 ms "
                "each."
            ),
            (
                "- **Above that, lengthen `refresh_interval`, not `max_lifetime`.** The interval is only what "
                "notices a rotation before a login fails; without it a rotation costs an instance "
                f"{sweep['1800 900']['failed_logins'] / sweep['1800 900']['instances']:.2f} failed logins instead of "
                f"{usual['failed_logins'] / usual['instances']:.2f}, and never more than a few, since one refusal is "
                "enough to know."
            ),
            (
                "- **A server that counts failed logins** (Supavisor blocks after 10, proxies and auditors alarm): a "
                f"short interval, {sweep['1800 10']['failed_logins'] / sweep['1800 10']['instances']:.2f} failed "
                "logins an instance and rotation with 10 s, "
                f"{sweep['1800 300']['failed_logins'] / sweep['1800 300']['instances']:.2f} with 300 s."
            ),
            (
                "- **A server short of processors**: a long lifetime. "
                f"{sweep['600 60']['connects_mean'] / sweep['600 60']['instances'] * 60:.2f} connects a minute and "
                f"instance with 600 s, {sweep['7200 60']['connects_mean'] / sweep['7200 60']['instances'] * 60:.2f} "
                "with 7200 s."
            ),
            (
                "- **A fleet that starts together** has its connections replaced together, a lifetime later. Spread "
                "that by `max_lifetime_jitter`: half of the lifetime, instead of a tenth, makes the wave "
                f"{calmer:.0%} of what it was.\n"
            ),
            table(("`max_lifetime_jitter`, of the lifetime", "peak connects/s for 1,000 instances"), waves),
            (
                f"- **Starting {largest['instances']:,} at once** asks {largest['calls_peak_start']:,} calls of the "
                f"store and {largest['connects_peak_start']:,} connections of the servers within one second: roll it "
                "out over minutes."
            ),
            "- **The store down while every password changes**: "
            f"{starved['instances']:,} instances asked it {starved['calls_peak']:,} times a second at most"
            + (
                f", were stale for up to {starved['worst_stale']:,.0f} s, and {starved['waited']:,} replacements "
                f"waited for it"
                if starved["worst_stale"]
                else ""
            )
            + ". Leave at least an outage's length between rotations.\n",
        )
    )


def _round(value: float) -> int:
    """Down to one digit that counts."""
    digits: int = 10 ** (len(str(int(value))) - 1)
    return int(value) // digits * digits
