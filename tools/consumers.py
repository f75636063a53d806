"""Take packages that use asyncpg through a rotation, by the recipes of the documentation: `make consumers`.

Each package has an environment of its own. Arguments name packages; without any, all of them are tried.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .environments import TOP, Report, environment

CONSUMERS = {
    "pgqueuer": "pgqueuer>=1.6",
    "tortoise": "tortoise-orm>=1.1",
    "piccolo": "piccolo>=1.38",
    "litestar": "litestar-asyncpg>=0.5",
    "taskiq": "taskiq-postgres>=0.9",
    "alembic": "alembic>=1.14",
}


def main() -> None:
    report = Report()
    for name in sys.argv[1:] or CONSUMERS:
        program = environment(f"consumer-{name}", "-e", ".[testing,sqlalchemy]", CONSUMERS[name])
        with tempfile.TemporaryDirectory() as scratch:
            scenario = str(TOP / "tools/consumer_scenario.py")
            report.run(name, "timeout", "120", program, scenario, name, cwd=Path(scratch))
    report.exit()


if __name__ == "__main__":
    main()
