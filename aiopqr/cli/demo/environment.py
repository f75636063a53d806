"""What the demo needs: a server, the two accounts, a database for each contestant, and the credentials file.

This is the operator's side. It changes passwords like an operator who knows nothing of the pools: first in the
database, and then in the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from ...credentials import Credential, CredentialPair, Parity
from ...errors import ConfigurationError
from ...rotation.sql import identifier
from ...testing import EmbeddedPostgres, ExistingPostgres, NotSupported, PostgresServer
from ..ops_input import ADMIN_PASSWORD, admin_password

WALLETS = 1000
COINS = 100

_TABLES = f"""
CREATE TABLE wallet (id int PRIMARY KEY, coins int NOT NULL);
INSERT INTO wallet SELECT n, {COINS} FROM generate_series(1, {WALLETS}) AS n;
CREATE TABLE transfer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, giver int, taker int);
ANALYZE wallet
"""


@dataclass(frozen=True, slots=True)
class PasswordChange:
    """A password change, ``at`` seconds after the start. The file follows ``store_delay`` seconds later."""

    at: float
    parities: tuple[Parity, ...]
    store_delay: float = 0.0

    @property
    def is_both(self) -> bool:
        return len(self.parities) == 2


def schedule(seconds: float, every: float, *, single: bool = False) -> tuple[PasswordChange, ...]:
    """Plan changes of odd and even in turn and, in the middle, of both, with the file a second behind.

    A single account is odd.
    """
    count = max(int((seconds - min(1.5, every / 2)) / every), 1)
    middle = count // 2 + 1 if count > 1 else 0
    parities = (Parity.ODD,) if single else (Parity.ODD, Parity.EVEN)
    one = (parities[n % len(parities)] for n in range(count))
    return tuple(
        PasswordChange(number * every, parities, min(1.0, every / 2))
        if number == middle
        else PasswordChange(number * every, (next(one),))
        for number in range(1, count + 1)
    )


def existing_server(dsn: str) -> PostgresServer:
    """The server of ``--dsn``. The password comes from the environment or the password file, never from the DSN.

    Raises :class:`ConfigurationError`, which does not show the DSN.
    """
    try:
        parts = urlsplit(dsn)
        parts.port  # noqa: B018  # raises if it is not a number
    except ValueError:
        raise ConfigurationError("--dsn must look like postgresql://admin@host:5432/postgres") from None
    if parts.password is not None or any(key in ("password", "passfile") for key, _ in parse_qsl(parts.query)):
        raise ConfigurationError(
            "--dsn must not contain a password, because others can read it in the process list: "
            f"set {ADMIN_PASSWORD} or PGPASSWORD, or put it in ~/.pgpass"
        )
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
        raise ConfigurationError("--dsn must look like postgresql://admin@host:5432/postgres")
    user = parts.username or quote(os.environ.get("PGUSER", "postgres"), safe="")
    password = admin_password(from_stdin=False)
    login = f"{user}:{quote(password.reveal(), safe='')}" if password else user
    return ExistingPostgres(urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}")))


class Environment:
    """The accounts, databases and file of one demo. ``pair`` is what the server accepts now."""

    def __init__(self, server: PostgresServer, pair: CredentialPair, databases: Sequence[str], file: Path) -> None:
        self.server = server
        self.pair = pair
        self.databases = databases
        self.file = file
        self._refused: dict[str, int] | None = dict.fromkeys(databases, 0)
        try:
            self._mark = server.mark()
        except NotSupported:
            self._refused = None

    async def rotate(self, rotation: PasswordChange) -> None:
        """Change the passwords in the database, and ``store_delay`` seconds later in the file."""
        changed = {}
        for parity in rotation.parities:
            account = self.pair[parity]
            assert account is not None, "the demo's pair has both accounts"
            changed[str(parity)] = Credential(account.username, secrets.token_urlsafe(18))
        await self.server.set_passwords(*changed.values())
        self.pair = dataclasses.replace(
            self.pair, odd=changed.get("odd", self.pair.odd), even=changed.get("even", self.pair.even)
        )
        await asyncio.sleep(rotation.store_delay)
        write_pair(self.file, self.pair)

    def refused_logins(self) -> dict[str, int] | None:
        """How many logins the server has refused so far, by database. None if its log cannot be read."""
        if self._refused is None:
            return None
        text = self.server.log_text(self._mark)
        text = text[: text.rfind("\n") + 1]
        self._mark += len(text.encode())
        for database in re.findall(r"@(\S+) FATAL: +password authentication failed", text):
            if database in self._refused:
                self._refused[database] += 1
        return self._refused

    async def count(self, database: str) -> tuple[int, int]:
        """How many coins and how many transfers there are."""
        rows = await self.server.execute(
            "SELECT (SELECT sum(coins) FROM wallet), (SELECT count(*) FROM transfer)", database=database
        )
        return int(rows[0][0]), int(rows[0][1])


@contextlib.asynccontextmanager
async def open_environment(dsn: str | None, contestants: int, *, single: bool = False) -> AsyncIterator[Environment]:
    """Set up the environment, and clean up at the end: no process, directory, database or account is left behind."""
    server = EmbeddedPostgres() if dsn is None else existing_server(dsn)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aiopqr-demo-")))  # mode 0700
        unique = f"_{secrets.token_hex(3)}" if dsn else ""  # nobody else uses a server of our own
        owner, databases = f"demo{unique}", [f"demo{unique}_{n + 1}" for n in range(contestants)]
        names = f"demo{unique}_odd", f"demo{unique}_even"

        async def clear() -> None:
            for database in databases:
                await server.drop_database(database)
            await server.drop_accounts(*names, owner)

        if dsn:
            stack.push_async_callback(_finish, clear)
        pair = await server.create_accounts(*names, owner=owner)
        for database in databases:
            await server.create_database(database)
            grants = f"GRANT SELECT, INSERT, UPDATE ON wallet, transfer TO {identifier(owner)}"
            await server.execute(f"{_TABLES}; {grants}", database=database)
        file = folder / "credentials.json"
        if single and pair.odd:
            pair = CredentialPair.single(pair.odd)
        write_pair(file, pair)
        yield Environment(server, pair, databases, file)


def write_pair(file: Path, pair: CredentialPair) -> None:
    """Atomically replace the file with one that contains ``pair`` or its single account, for its owner only."""
    keys: dict[str, str] = {} if pair.is_single else {"active_credential": str(pair.active)}
    for parity, account in ((parity, pair[parity]) for parity in Parity):
        if account is not None:
            prefix = "" if pair.is_single else f"{parity}_"
            keys |= {f"{prefix}username": account.username, f"{prefix}password": account.password.reveal()}
    new = file.with_suffix(".new")
    new.touch(0o600)
    new.write_text(json.dumps(keys))
    os.replace(new, file)


async def _finish(clear: object) -> None:
    """Clean up completely, even if cancelled."""
    assert callable(clear)
    task = asyncio.ensure_future(clear())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
