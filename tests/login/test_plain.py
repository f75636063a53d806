"""The administrator's tools: what they let a server ask for, and where they find the password."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asyncpg import connect_utils

from aiopqr import ConfigurationError, UntrustedServer
from aiopqr._login import connect_once, place_of
from aiopqr.credentials import Secret

from . import who_sends_what as impostors
from .conftest import PASSWORD
from .test_real_servers import user_of


@pytest.mark.parametrize("name", ["asks for the password as plain text", "asks for MD5"])
@pytest.mark.parametrize("channel", impostors.CHANNELS)
async def test_an_impostor_gets_nothing_of_an_administrator(name: str, channel: str) -> None:
    got: set[str] = set()
    mode = impostors.CHANNELS[channel]
    tls = impostors.own_certificate() if mode == "require" else None
    async with impostors.impostor(impostors.SERVERS[name], tls, got) as port:
        with pytest.raises(UntrustedServer, match=r"allows only none,scram-sha-256\. .* require_auth=.*(md5|password)"):
            await connect_once(f"postgresql://admin:{impostors.PASSWORD}@127.0.0.1:{port}/postgres?sslmode={mode}")
    assert not got


@pytest.mark.parametrize("where", ["dsn", "environment"])
async def test_others_are_allowed_when_somebody_says_so(
    where: str, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = f"postgresql://by_md5@127.0.0.1:{servers('16').port}/postgres?sslmode=disable"
    if where == "dsn":
        dsn += "&require_auth=md5"
    else:
        monkeypatch.setenv("PGREQUIREAUTH", "md5")
    asked: list[str] = []
    assert await user_of(await connect_once(dsn, password=Secret(PASSWORD), asked=asked.append)) == "by_md5"
    assert asked == ["md5 over plain TCP"]


@pytest.mark.parametrize("password", ["1234/s3cr3t", "s3cr3t#1234", "12@s3cr3t", "s3cr3t?a=b", "[s3cr3t]"])
async def test_a_dsn_whose_password_is_not_escaped_is_an_error_and_no_part_of_it_is_shown(password: str) -> None:
    dsn = f"postgresql://admin:{password}@127.0.0.1:1/postgres"
    with pytest.raises(ConfigurationError, match=r"^the DSN ") as caught:
        await connect_once(dsn)
    assert "s3cr3t" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert place_of(dsn) == ""


async def test_without_asyncpgs_parser_an_administrator_learns_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(connect_utils, "_parse_connect_dsn_and_args")
    with pytest.raises(ConfigurationError, match=r"asyncpg .* upgrade aiopqr, or install asyncpg 0\.32"):
        await connect_once("postgresql://admin@127.0.0.1:1/postgres")


@pytest.mark.parametrize("where", ["dsn", "environment", "password file"])
async def test_the_password_is_found_where_asyncpg_looks(
    where: str, servers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = servers("16").port
    given = f":{PASSWORD.replace(' ', '%20')}" if where == "dsn" else ""
    if where == "environment":
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
    elif where == "password file":
        file = tmp_path / "passwords"
        file.write_text(f"127.0.0.1:{port}:*:by_scram:{PASSWORD}\n")
        file.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(file))
    dsn = f"postgresql://by_scram{given}@127.0.0.1:{port}/postgres?sslmode=disable"
    assert await user_of(await connect_once(dsn)) == "by_scram"
