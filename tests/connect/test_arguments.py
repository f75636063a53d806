"""Where to connect to, by the arguments, the environment and the secret."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from asyncpg import connect_utils

import aiopqr
from aiopqr._connect import arguments, maker_of
from aiopqr._connect.arguments import ArgumentReader
from aiopqr.credentials import Endpoint
from aiopqr.testing import RotatingPostgres

PAIR = aiopqr.CredentialPair(aiopqr.Credential("a", "x"), aiopqr.Credential("b", "y"))


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGSERVICE", "PGSSLROOTCERT", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)


async def connect(*args: Any, **kwargs: Any) -> Any:
    async with asyncio.timeout(5), aiopqr.Connector(*args, **{"credentials": PAIR, **kwargs}) as maker:
        return await maker.connect()


async def test_a_dsn_without_a_database_is_refused_since_each_account_would_use_another() -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="no database is named"):
        await connect("postgresql://127.0.0.1:1")


async def test_the_secrets_database_serves_where_the_dsn_names_only_a_host(postgres: RotatingPostgres) -> None:
    source = replace(postgres.pair, endpoint=Endpoint(database=postgres.database))
    con = await connect(postgres.dsn.rpartition("/")[0], credentials=source, ssl="disable")
    assert await con.fetchval("select current_database()") == postgres.database
    await con.close()


async def test_no_host_anywhere_is_an_error_at_once(unused_tcp_port: int) -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="no host is named"):
        await connect(database="orders", port=unused_tcp_port)
    with pytest.raises(aiopqr.ConfigurationError, match="no database and no host is named"):
        await connect()


@pytest.mark.parametrize("dsn", [None, "postgresql:///orders"])
async def test_a_missing_file_in_the_environment_is_named_at_once(
    dsn: str | None, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    values = {"PGHOST": "127.0.0.1", "PGPORT": str(unused_tcp_port), "PGDATABASE": "orders"}
    for name, value in (values | {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere/ca.pem"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(aiopqr.ConfigurationError, match="PGSSLROOTCERT points to a file that does not exist: /nowhere"):
        await connect(dsn)


async def test_a_missing_file_in_the_service_file_is_named_at_once(tmp_path: Path, unused_tcp_port: int) -> None:
    services = tmp_path / "services"
    services.write_text(
        f"[orders]\nhost=127.0.0.1\nport={unused_tcp_port}\ndbname=o\nsslmode=verify-ca\nsslrootcert=/nowhere/ca.pem\n"
    )
    with pytest.raises(aiopqr.ConfigurationError, match="sslrootcert in the service file"):
        await connect("postgresql://?service=orders", servicefile=str(services))


async def test_a_users_own_connect_gets_arguments_that_are_not_ours_to_read(postgres: RotatingPostgres) -> None:
    async def connector(instance: str, **kwargs: Any) -> asyncpg.Connection:
        assert instance == "project:region:orders"
        return await asyncpg.connect(postgres.dsn, ssl="disable", **kwargs)

    con = await connect("project:region:orders", credentials=postgres.source, connect=connector)
    await con.close()
    with pytest.raises(aiopqr.ConfigurationError, match="password="):
        aiopqr.Connector("project:region:orders", credentials=PAIR, connect=connector, password="x")


async def test_connections_behind_an_agents_proxy_are_recognised(
    postgres: RotatingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like ddtrace: it wraps ``asyncpg.connect``. What asyncpg's own pool calls is not wrapped."""

    class Traced:
        def __init__(self, con: asyncpg.Connection) -> None:
            self.__wrapped__ = con

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__wrapped__, name)

        __class__ = property(lambda self: type(self.__wrapped__))  # type: ignore[assignment]

    real = asyncpg.connect

    async def traced(*args: Any, **kwargs: Any) -> Any:
        return Traced(await real(*args, **kwargs))

    monkeypatch.setattr(asyncpg, "connect", traced)
    for own in (None, traced):
        options: dict[str, Any] = {"credentials": postgres.source, "connect": own, "ssl": "disable"}
        async with aiopqr.Connector(postgres.dsn, **options) as maker:
            con = await maker.connect()
            attempt = maker_of(maker).attempt_of(con)
            assert attempt is not None
            await postgres.rotate(attempt.parity)
            await maker.refresh()
            assert maker.is_superseded(con)
            await con.close()


async def test_the_refusals_are_still_there_once_the_accounts_are_set_aside() -> None:
    async def refuse(*args: Any, **kwargs: Any) -> asyncpg.Connection:
        raise asyncpg.InvalidPasswordError("password authentication failed")

    async with aiopqr.Connector(credentials=PAIR, connect=refuse) as maker:
        for _ in range(2):
            with pytest.raises(aiopqr.CredentialsRefused, match=r"last fetched .* ago.*aiopqr check") as caught:
                await maker.connect(timeout=0.2)
            assert set(caught.value.refusals) == {"a", "b"}
            assert isinstance(caught.value.__cause__, asyncpg.InvalidPasswordError)


DSN = "postgresql://127.0.0.1/orders"


def test_arguments_that_stay_the_same_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = []
    read = arguments.read_target
    monkeypatch.setattr(arguments, "read_target", lambda *a: readings.append(a) or read(*a))
    reader = ArgumentReader()
    first, second = (reader.read((DSN,), {"command_timeout": seconds}, None, 0.0) for seconds in (1, 2))
    assert len(readings) == 1
    assert first.target is second.target
    assert [found.kwargs["command_timeout"] for found in (first, second)] == [1, 2]


def as_asyncpg_reads(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The servers and parameters that asyncpg finds in the arguments of a connect."""
    parse = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]
    known = dict(zip(("dsn",), args, strict=False)) | kwargs | {"user": "a", "password": "x"}
    addresses, params = parse(**{name: known.get(name) for name in inspect.signature(parse).parameters})
    if isinstance(params.ssl, ssl.SSLContext):  # made anew for each connect
        params = params._replace(ssl=(params.ssl.check_hostname, params.ssl.verify_mode))
    return addresses, params


@pytest.mark.parametrize(
    "variables",
    [{}, {"PGSSLMODE": "disable", "PGPORT": "7432", "PGTARGETSESSIONATTRS": "read-only"}],
    ids=["", "variables"],
)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"ssl": "require"},
        {"ssl": False, "target_session_attrs": "read-write"},
        {"ssl": None, "database": "other"},
        {"host": "::1", "port": 6000},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("dsn", "is_needed"),
    [
        (DSN, False),
        ("postgresql://u:p@db.example:6432/a%20b?sslmode=require", False),
        ("postgres://[fe80::1%25eth0]:6432/orders?sslmode=disable", False),
        ("postgresql://127.0.0.1/orders?sslmode=allow&sslmode=prefer#x", False),
        ("postgresql://127.0.0.1/orders?target_session_attrs=primary", False),
        ("postgresql://127.0.0.1/orders?application_name=x&sslmode=disable", True),
        ("postgresql://127.0.0.1/?dbname=orders", True),
        ("postgresql://127.0.0.1:0/orders", True),
        ("postgresql://:6432/orders", True),
        ("postgresql://127.0.0.1,127.0.0.2:6432/orders", True),
        ("postgresql:///orders?host=/tmp", True),
    ],
)
def test_asyncpg_finds_the_same_in_the_arguments_that_a_connect_passes_on(
    dsn: str, is_needed: bool, kwargs: dict[str, Any], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = ArgumentReader().read((dsn,), kwargs, None, 0.0)
    assert as_asyncpg_reads(found.args, found.kwargs) == as_asyncpg_reads((dsn,), kwargs)
    if "host" not in kwargs:
        assert bool(found.args) is is_needed, "asyncpg parses a DSN anew for each connect"


@pytest.mark.parametrize("dsn", [DSN, None])
@pytest.mark.parametrize(
    ("variable", "value", "attribute"),
    [
        ("PGTARGETSESSIONATTRS", "primary", "session_attribute"),
        ("PGREQUIREAUTH", "scram-sha-256", "trust"),
        ("PGCHANNELBINDING", "disable", "trust"),
        ("PGHOST", "db.example", "target"),
        ("PGPORT", "6432", "target"),
        ("PGDATABASE", "other", "target"),
    ],
)
def test_a_variable_that_changes_counts_within_a_second(
    dsn: str | None, variable: str, value: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATABASE", "orders")
    reader, args = ArgumentReader(), (dsn,) if dsn else ()
    before = reader.read(args, {}, None, 7.0)
    monkeypatch.setenv(variable, value)
    fresh = ArgumentReader().read(args, {}, None, 7.5)
    assert getattr(reader.read(args, {}, None, 7.5), attribute) == getattr(before, attribute)
    assert getattr(reader.read(args, {}, None, 8.0), attribute) == getattr(fresh, attribute)


def test_what_the_caller_changes_counts_from_the_next_connect_on() -> None:
    reader, hosts = ArgumentReader(), ["127.0.0.1", "127.0.0.2"]
    kwargs: dict[str, Any] = {"host": hosts, "database": "orders"}
    before = reader.read((), kwargs, None, 0.0).addresses
    hosts.reverse()
    assert reader.read((), kwargs, None, 0.0).addresses == before[::-1]
    assert reader.read((), {**kwargs, "host": None}, Endpoint(host="127.0.0.3"), 0.0).addresses[0] == replace(
        before[0], host="127.0.0.3", ip="127.0.0.3"
    )


def test_a_secret_may_name_several_hosts_as_a_dsn_may() -> None:
    named = (
        ArgumentReader().read(("postgresql://127.0.0.1,127.0.0.2:6432/orders",), {"port": 6432}, None, 0.0).addresses
    )
    found = ArgumentReader().read((), {}, Endpoint("127.0.0.1,127.0.0.2", 6432, "orders"), 0.0)
    assert found.addresses == named
    assert len(named) == 2


@pytest.mark.parametrize(
    "kwargs", [{"dsn": "postgresql://?service=orders"}, {"service": "orders", "dsn": "postgresql:///"}]
)
def test_a_service_file_is_read_for_each_connect(kwargs: dict[str, Any], tmp_path: Path) -> None:
    reader, services = ArgumentReader(), tmp_path / "services"
    for port in (5432, 6432):
        services.write_text(f"[orders]\nhost=127.0.0.1\nport={port}\ndbname=o\n")
        found = reader.read((), {**kwargs, "servicefile": str(services)}, None, 0.0)
        assert [address.port for address in found.addresses] == [port]
