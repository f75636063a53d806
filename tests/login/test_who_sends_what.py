"""What an impostor's server gets: the promises of docs/security.md, and what stricter options do."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

import aiopqr
from aiopqr import CredentialPair, UntrustedServer
from aiopqr._login import KeyCache
from aiopqr.credentials import Credential

from . import who_sends_what as impostors
from .who_sends_what import CHANNELS, MIDDLE, NOTHING, RELAYS, SERVERS, TRUSTED, by_aiopqr, meets, meets_in_the_middle

DEFAULT = {  # all others get nothing
    ("asks for the password as plain text", "TLS, sslmode=require"): "the password",
    ("asks for MD5", "plain TCP"): "an MD5 hash to crack",
    ("asks for MD5", "TLS, sslmode=require"): "an MD5 hash to crack",
    ("lets the client in without asking for a password", "plain TCP"): TRUSTED,
    ("lets the client in without asking for a password", "TLS, sslmode=require"): TRUSTED,
}


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("server", SERVERS)
async def test_what_an_impostor_gets(server: str, channel: str) -> None:
    assert await meets(by_aiopqr, SERVERS[server], channel) == DEFAULT.get((server, channel), NOTHING)


def test_the_documented_table_says_so() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    documented = {(row[0], row[1]): row[2] for row in rows if len(row) == 5 and row[0] in SERVERS}
    assert documented == {(s, c): DEFAULT.get((s, c), NOTHING) for s in SERVERS for c in CHANNELS}


@pytest.mark.parametrize("options", [{"require_auth": "scram-sha-256"}, {"channel_binding": "require"}])
@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("server", SERVERS)
async def test_it_gets_nothing_where_scram_is_required(server: str, channel: str, options: dict[str, str]) -> None:
    assert await meets(by_aiopqr, SERVERS[server], channel, **options) == NOTHING


@pytest.mark.parametrize("require_auth", ["password", "md5,password,none"])
async def test_the_password_goes_in_clear_where_somebody_allowed_it(require_auth: str) -> None:
    assert (
        await meets(by_aiopqr, impostors.asks_for_plain_text, "plain TCP", require_auth=require_auth) == "the password"
    )


@pytest.mark.parametrize("trick", MIDDLE)
@pytest.mark.parametrize("channel_binding", ["prefer", "require"])
async def test_nobody_in_the_middle_gets_a_session(tls_server: Any, trick: str, channel_binding: str) -> None:
    tls_server.run(f"create role {impostors.USER} login password '{impostors.PASSWORD}'")
    try:
        where = tls_server.port, trick
        assert await meets_in_the_middle(by_aiopqr, *where, channel_binding=channel_binding) == NOTHING
        # The server in the middle works: without channel binding it gets what asyncpg gives it.
        if trick == RELAYS:
            got = await meets_in_the_middle(by_aiopqr, *where, channel_binding="disable")
            assert got == "a session on the real server, logged in as the client"
    finally:
        tls_server.run(f"drop role {impostors.USER}")


PAIR = CredentialPair(odd=Credential("app_odd", "odd password"), even=Credential("app_even", "even password"))


@pytest.mark.parametrize("scram_cache", [True, False])
async def test_neither_account_is_given_away(scram_cache: bool) -> None:
    """A refused account is followed by the other one; a server that is not trusted is not asked again."""
    logins = 0

    async def ask(peer: impostors.Impostor) -> None:
        nonlocal logins
        logins += 1
        await impostors.asks_for_plain_text(peer)

    got: set[str] = set()
    async with (
        impostors.impostor(ask, None, got) as port,
        aiopqr.Connector(
            f"postgresql://127.0.0.1:{port}/d?sslmode=disable", credentials=PAIR, scram_cache=scram_cache
        ) as connector,
    ):
        with pytest.raises(UntrustedServer, match="require_auth=password") as caught:
            await connector.connect(timeout=10)
    assert logins == 1
    assert not got
    assert "odd password" not in str(caught.value)


@pytest.mark.parametrize("where", ["dsn", "argument", "environment"])
async def test_a_pool_takes_the_options_wherever_libpq_has_them(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got: set[str] = set()
    async with impostors.impostor(impostors.asks_for_nothing, None, got) as port:
        dsn, options = f"postgresql://127.0.0.1:{port}/d?sslmode=disable", dict[str, Any]()
        if where == "dsn":
            dsn += "&require_auth=scram-sha-256"
        elif where == "argument":
            options = {"require_auth": "scram-sha-256"}
        else:
            monkeypatch.setenv("PGREQUIREAUTH", "scram-sha-256")
        with pytest.raises(UntrustedServer, match="allows only scram-sha-256"):
            await aiopqr.create_pool(dsn, credentials=PAIR, min_size=1, max_size=1, **options)


async def test_a_mistake_is_an_error_when_it_is_made() -> None:
    for options in ({"require_auth": "scram"}, {"channel_binding": "maybe"}):
        for make in (aiopqr.Connector, aiopqr.create_pool):
            with pytest.raises(aiopqr.ConfigurationError):
                make("postgresql://127.0.0.1/d", credentials=PAIR, **options)


async def test_a_connect_of_the_users_own_cannot_be_made_to_obey() -> None:
    async def connect(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    async with aiopqr.Connector(
        "postgresql://127.0.0.1/d?require_auth=scram-sha-256", credentials=PAIR, connect=connect
    ) as connector:
        with pytest.raises(aiopqr.ConfigurationError, match="connect="):
            await connector.connect(timeout=5)


async def test_a_password_that_was_proved_is_never_sent_in_clear_again(tls_server: Any) -> None:
    """Not even if somebody allowed it, with the same password on another server."""
    from .test_real_servers import enter

    await (await enter(tls_server, "by_scram", KeyCache())).close()
    with pytest.raises(UntrustedServer, match="has proved by SCRAM"):
        await enter(tls_server, "by_password", KeyCache())


async def test_an_unchecked_certificate_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    got: set[str] = set()
    async with impostors.impostor(impostors.asks_for_plain_text, impostors.own_certificate(), got) as port:
        dsn = f"postgresql://127.0.0.1:{port}/d?sslmode=require"
        async with aiopqr.Connector(dsn, credentials=PAIR) as connector:
            for _ in range(2):
                with pytest.raises(aiopqr.CredentialsRefused):
                    await connector.connect(timeout=0.5)
    warnings = [record for record in caplog.records if "as plain text" in record.message]
    assert [record.levelno for record in warnings] == [logging.WARNING]


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
def test_a_real_server_is_bound_to_its_certificate(tls_server: Any, runner: str) -> None:
    import uvloop

    from .test_real_servers import enter, user_of

    async def main() -> None:
        for option, ssl, expected in (
            ("prefer", "require", "scram-sha-256-plus over TLS"),
            ("require", "require", "scram-sha-256-plus over TLS"),
            ("require", tls_server.tls, "scram-sha-256-plus over TLS"),
            ("disable", "require", "scram-sha-256 over TLS"),
            ("prefer", "disable", "scram-sha-256 over plain TCP"),
        ):
            asked: list[str] = []
            trust = aiopqr._trust.Trust.parse(channel_binding=option)
            con = await enter(tls_server, "by_scram", KeyCache(), ssl=ssl, trust=trust, asked=asked.append)
            assert await user_of(con) == "by_scram"
            assert asked == [expected]
        with pytest.raises(UntrustedServer, match="needs TLS"):
            await enter(tls_server, "by_scram", KeyCache(), trust=aiopqr._trust.Trust.parse(None, "require"))

    {"asyncio": asyncio.run, "uvloop": uvloop.run}[runner](main())
