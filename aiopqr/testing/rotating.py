"""A database with two accounts whose passwords a test can change, first in the database and then in the store."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Self

import asyncpg

from .._login import connect_once
from ..credentials import Credential, CredentialPair, Parity
from .server import PostgresServer
from .source import ScriptedSource


class RotatingPostgres:
    """A separate database on ``server``, two accounts, and a :class:`ScriptedSource` that knows their passwords.

    :attr:`pair` is what the database accepts now, and ``source.pair`` is what the store shows.
    """

    def __init__(self, server: PostgresServer, database: str, pair: CredentialPair, owner: str) -> None:
        self.server = server
        self.database = database
        self.owner = owner
        self.pair = pair
        self.source = ScriptedSource(pair)

    def __repr__(self) -> str:
        return f"<RotatingPostgres {self.database!r} on {self.server!r}>"

    @classmethod
    async def create(cls, server: PostgresServer) -> Self:
        """Create the accounts and the database, with unique names."""
        name = f"app_{secrets.token_hex(4)}"
        pair = await server.create_accounts(f"{name}_odd", f"{name}_even", owner=name, database=name)
        return cls(server, name, pair, name)

    async def drop(self) -> None:
        """Drop the database and the accounts, ending their sessions."""
        await self.server.drop_database(self.database)
        await self.server.drop_accounts(*self.usernames, self.owner)

    @property
    def dsn(self) -> str:
        """The database's DSN, without a user or a password."""
        return self.server.dsn_of(self.database)

    @property
    def usernames(self) -> tuple[str, ...]:
        """The names of the two accounts."""
        return tuple(account.username for account in self.pair.credentials())

    async def connect(self, parity: str | Parity = Parity.ODD) -> asyncpg.Connection[asyncpg.Record]:
        """Open a plain connection with one account."""
        account = self._account(Parity(parity))
        connection: asyncpg.Connection[asyncpg.Record] = await connect_once(
            self.dsn, user=account.username, password=account.password, timeout=60.0, statement_cache_size=100
        )
        return connection

    async def rotate(
        self, parity: str | Parity = Parity.ODD, *, password: str | None = None, store_delay: float | None = 0.0
    ) -> CredentialPair:
        """Change one password in the database, and ``store_delay`` seconds later in the source (None: never).

        Returns the pair that the database accepts now.
        """
        return await self._rotate([Parity(parity)], password, store_delay)

    async def rotate_both(self, *, store_delay: float | None = 0.0) -> CredentialPair:
        """Change both passwords in the database, in one transaction, and then in the source, as :meth:`rotate` does."""
        return await self._rotate(list(Parity), None, store_delay)

    def failed_logins(self) -> int:
        """Return how many logins of the two accounts have been refused so far because of a wrong password."""
        return sum(self.server.failed_logins(username=name) for name in self.usernames)

    async def sessions(self, parity: str | Parity | None = None) -> list[asyncpg.Record]:
        """Return the rows of ``pg_stat_activity`` for both accounts, or for one."""
        return await self.server.sessions(*self._names(parity))

    async def terminate(self, parity: str | Parity | None = None) -> int:
        """End the sessions of both accounts, or of one. Returns how many there were."""
        return await self.server.terminate(*self._names(parity))

    async def _rotate(self, parities: list[Parity], password: str | None, delay: float | None) -> CredentialPair:
        changed = {
            str(parity): Credential(self._account(parity).username, password or secrets.token_urlsafe(18))
            for parity in parities
        }
        await self.server.set_passwords(*changed.values())
        self.pair = replace(self.pair, odd=changed.get("odd", self.pair.odd), even=changed.get("even", self.pair.even))
        if delay is not None:
            self.source.publish(self.pair, after=delay)
        return self.pair

    def _names(self, parity: str | Parity | None) -> tuple[str, ...]:
        return self.usernames if parity is None else (self._account(Parity(parity)).username,)

    def _account(self, parity: Parity) -> Credential:
        account = self.pair[parity]
        assert account is not None, "a rotating database always has both accounts"
        return account
