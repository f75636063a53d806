"""Take packages that use asyncpg through a rotation, by the recipes of the documentation: `make consumers`.

Each package has an environment of its own. Arguments name packages; without any, all of them are tried.
"""

from __future__ import annotations

from .environments import try_packages

CONSUMERS = {
    "pgqueuer": ["pgqueuer>=1.6"],
    "tortoise": ["tortoise-orm>=1.1"],
    "piccolo": ["piccolo>=1.38"],
    "litestar": ["litestar-asyncpg>=0.5"],
    "taskiq": ["taskiq-postgres>=0.9"],
    "alembic": ["alembic>=1.14"],
}

if __name__ == "__main__":
    try_packages("consumer", CONSUMERS)
