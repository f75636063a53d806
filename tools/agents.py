"""Run a pool, a rotation and an SQLAlchemy engine under the agents that people run: `make agents`.

Each agent has an environment of its own. Arguments name agents; without any, all of them are tried.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .environments import TOP, Report, environment

AGENTS = {
    "newrelic": "newrelic",
    "ddtrace": "ddtrace",
    "elastic": "elastic-apm",
    "sentry": "sentry-sdk",
    "opentelemetry": "opentelemetry-instrumentation-asyncpg",
}


def main() -> None:
    report = Report()
    for name in sys.argv[1:] or AGENTS:
        more = ["opentelemetry-sdk"] if name == "opentelemetry" else []
        program = environment(f"agent-{name}", "-e", ".[testing,sqlalchemy]", AGENTS[name], *more)
        with tempfile.TemporaryDirectory() as scratch:
            scenario = str(TOP / "tools/agent_scenario.py")
            report.run(name, "timeout", "120", program, scenario, name, cwd=Path(scratch))
    report.exit()


if __name__ == "__main__":
    main()
