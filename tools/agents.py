"""Run a pool, a rotation and an SQLAlchemy engine under the agents that people run: `make agents`.

Each agent has an environment of its own. Arguments name agents; without any, all of them are tried.
"""

from __future__ import annotations

from .environments import try_packages

AGENTS = {
    "newrelic": ["newrelic"],
    "ddtrace": ["ddtrace"],
    "elastic": ["elastic-apm"],
    "sentry": ["sentry-sdk"],
    "opentelemetry": ["opentelemetry-instrumentation-asyncpg", "opentelemetry-sdk"],
}

if __name__ == "__main__":
    try_packages("agent", AGENTS)
