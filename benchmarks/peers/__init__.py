"""The pools and drivers that are measured, each behind one small protocol: open, operations, close.

A peer's module is imported only in the process that runs it. :func:`check` fails beforehand if any peer is missing,
because a table that leaves one out would flatter the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Account:
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Where:
    """A database and the two accounts that log in to it. ``ca`` is the file with which TLS is verified."""

    host: str
    port: int
    database: str
    odd: Account
    even: Account
    ca: str | None = None

    @property
    def dsn(self) -> str:
        tls = f"sslmode=verify-full&sslrootcert={self.ca}" if self.ca else "sslmode=disable"
        return f"postgresql://{self.host}:{self.port}/{self.database}?{tls}"

    def as_message(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_message(cls, message: dict[str, Any]) -> Where:
        accounts = {parity: Account(**message[parity]) for parity in ("odd", "even")}
        return cls(**{**message, **accounts})


class Store(Protocol):
    """Where a peer gets newer passwords while they change."""

    async def fetch(self) -> Where: ...


@dataclass(frozen=True, slots=True)
class Options:
    """How a peer is opened. ``lifetime`` is in seconds, 0 for none; ``store`` is given if passwords change."""

    size: int = 10
    lifetime: float = 0.0
    store: Store | None = None
    more: dict[str, Any] = field(default_factory=dict)  # the peer's own options, from PEERS


class Peer(Protocol):
    """Its operations: ``churn`` (connect, SELECT 1, close), or ``hold`` (acquire, release), ``select`` and ``rows``."""

    def __init__(self, where: Where, options: Options) -> None: ...

    async def open(self) -> None: ...

    def operation(self, name: str) -> Operation: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a peer's class is, and what has to be installed for it."""

    module: str
    needs: str
    package: str
    more: dict[str, Any] = field(default_factory=dict)
    kind: str = "Pool"


PEERS = {
    # Pools.
    "aiopqr": Entry("ours", "aiopqr", "aiopqr", {"session_reset": "full"}),
    "aiopqr, deferred reset": Entry("ours", "aiopqr", "aiopqr", {"session_reset": "deferred"}),
    "aiopqr, transaction reset": Entry("ours", "aiopqr", "aiopqr", {"session_reset": "transaction"}),
    "aiopqr, least reset": Entry("ours", "aiopqr", "aiopqr", {"session_reset": "transaction"}, kind="LeastReset"),
    "asyncpg": Entry("plain_asyncpg", "asyncpg", "asyncpg"),
    "psycopg_pool": Entry("psycopg3", "psycopg_pool", "psycopg[binary,pool]"),
    "SQLAlchemy": Entry("alchemy", "sqlalchemy.ext.asyncio", "sqlalchemy[asyncio]"),
    "psycopg_pool, autocommit": Entry("psycopg3", "psycopg_pool", "psycopg[binary,pool]", {"autocommit": True}),
    "SQLAlchemy, autocommit": Entry(
        "alchemy", "sqlalchemy.ext.asyncio", "sqlalchemy[asyncio]", {"isolation_level": "AUTOCOMMIT"}
    ),
    "bare connections": Entry("plain_asyncpg", "asyncpg", "asyncpg", kind="Bare"),
    # Connections without a pool.
    "aiopqr Connector": Entry("ours", "aiopqr", "aiopqr", kind="Churn"),
    "asyncpg.connect": Entry("plain_asyncpg", "asyncpg", "asyncpg", kind="Churn"),
    "psycopg 3": Entry("psycopg3", "psycopg", "psycopg[binary,pool]", kind="Churn"),
    "pgbench -C": Entry("pgbench", "aiopqr.testing", "aiopqr[testing]", kind="Churn"),
    # Pools whose passwords change.
    "aiopqr, no lifetime": Entry("ours", "aiopqr", "aiopqr", {"session_reset": "full", "no_lifetime": True}),
    "asyncpg, password callable": Entry("plain_asyncpg", "asyncpg", "asyncpg", kind="CallablePool"),
    "asyncpg, alternating connect": Entry("alternating", "asyncpg", "asyncpg"),
}
LOOPS = {"asyncio": "asyncio", "uvloop": "uvloop"}


class MissingPeer(Exception):
    """Something to compare with is not installed."""


def peer_of(name: str) -> tuple[type[Peer], dict[str, Any]]:
    """A peer's class, and its own options. Raises :class:`MissingPeer`."""
    entry = PEERS[name]
    check([name])
    return getattr(importlib.import_module(f"{__name__}.{entry.module}"), entry.kind), entry.more


def check(names: Iterable[str]) -> None:
    """Raise one :class:`MissingPeer` that names everything that is missing, among peers and event loops."""
    missing = {}
    for name in names:
        module = PEERS[name].needs if name in PEERS else LOOPS[name]
        try:
            importlib.import_module(module)
        except ImportError as exc:
            package = PEERS[name].package if name in PEERS else name
            missing[name] = f"{name} ({exc}): pip install '{package}'"
    if missing:
        raise MissingPeer("these are not installed:\n  " + "\n  ".join(missing.values()))
