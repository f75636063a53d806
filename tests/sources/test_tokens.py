"""Token sources: what they ask for, when a token expires, and that no token is shown."""

from __future__ import annotations

import asyncio
import ssl
import sys
import traceback
import types
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import aiopqr
from aiopqr.sources import EntraSource, GoogleSource, RdsIamSource, TokenSource, tokens

LATER = datetime(2030, 1, 1, tzinfo=UTC)
TOKEN = "t0ken-7f3a"


async def fetched(source: TokenSource) -> aiopqr.Credential:
    pair = await source.fetch()
    assert pair.is_single
    assert pair.odd
    assert TOKEN not in repr(source)
    assert TOKEN not in repr(pair)
    return pair.odd


async def test_a_token_is_a_password_that_expires_and_leaves_sessions_alone() -> None:
    async def fetch() -> tuple[str, datetime]:
        return TOKEN, LATER

    account = await fetched(TokenSource("app", fetch))
    assert account == aiopqr.Credential("app", TOKEN)
    assert account.expires_at == LATER
    assert not account.ends_sessions


@pytest.mark.parametrize("answer", [TOKEN, (TOKEN,), (TOKEN, 900), (None, LATER), None])
async def test_an_answer_that_is_no_token_is_refused_without_being_shown(answer: Any) -> None:
    async def fetch() -> Any:
        return answer

    with pytest.raises(aiopqr.SourceError, match="must return a token and its expiry") as caught:
        await TokenSource("app", fetch).fetch()
    assert TOKEN not in str(caught.value)


async def test_a_function_that_is_not_async_is_refused() -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="async function"):
        await TokenSource("app", lambda: (TOKEN, LATER)).fetch()  # type: ignore[arg-type, return-value]


def answer_of(found: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.set_result(found)
    return future


UNUSABLE = [(TOKEN.encode(), LATER), (TOKEN, LATER.replace(tzinfo=None)), (f"{TOKEN}\n", LATER), [TOKEN], TOKEN]


@pytest.mark.parametrize("found", UNUSABLE)
@pytest.mark.parametrize("answered", [answer_of, lambda found: found], ids=["awaitable", "not async"])
async def test_no_traceback_shows_a_token_that_cannot_be_used(answered: Any, found: Any) -> None:
    with pytest.raises((aiopqr.SourceError, aiopqr.ConfigurationError)) as caught:
        await TokenSource("app", lambda: answered(found)).fetch()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    inside = [frame for frame in shown.stack if frame.filename == tokens.__file__]
    assert inside
    assert TOKEN not in repr([frame.locals for frame in inside])
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_a_token_that_ends_in_a_line_break_is_refused_by_the_name_of_its_flaw() -> None:
    with pytest.raises(aiopqr.SourceError, match=r"TokenSource\('app'\).* must not end with white space \(a line feed"):
        await TokenSource("app", lambda: answer_of((f"{TOKEN}\n", LATER))).fetch()


async def test_pools_that_share_a_refresher_ask_once_for_each_token() -> None:
    calls = 0

    async def fetch() -> tuple[str, datetime]:
        nonlocal calls
        calls += 1
        return f"{TOKEN}-{calls}", datetime.now(UTC) + timedelta(seconds=900)

    async with aiopqr.Refresher(TokenSource("app", fetch)) as refresher:
        connectors = [aiopqr.Connector("postgresql://db/app", credentials=refresher) for _ in range(8)]
        await asyncio.gather(*(connector.start() for connector in connectors))
        assert calls == 1
        await asyncio.gather(*(connector.close() for connector in connectors))


# Entra ID and Google.


async def test_entra_gives_a_token_for_the_scope_of_azures_postgres() -> None:
    class Identity:
        async def get_token(self, *scopes: str) -> Any:
            assert scopes == ("https://ossrdbms-aad.database.windows.net/.default",)
            return types.SimpleNamespace(token=TOKEN, expires_on=int(LATER.timestamp()))

    account = await fetched(EntraSource("app@contoso.com", Identity()))
    assert (account.username, account.expires_at) == ("app@contoso.com", LATER)


@dataclass
class GoogleCredentials:
    """Like google-auth's: refresh() with a transport sets the token and a naive expiry."""

    token: str | None = None
    expiry: datetime | None = None
    requests: list[Any] = field(default_factory=list)

    def refresh(self, request: Any) -> None:
        self.requests.append(request)
        self.token, self.expiry = TOKEN, LATER.replace(tzinfo=None)


async def test_google_refreshes_its_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    if "google.auth" not in sys.modules:  # its modules, if the extra is not installed
        for name in ("google", "google.auth", "google.auth.transport", "google.auth.transport.requests"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["google.auth.transport.requests"].Request = object  # type: ignore[attr-defined]
        sys.modules["google"].auth = sys.modules["google.auth"]  # type: ignore[attr-defined]
    credentials = GoogleCredentials()
    account = await fetched(GoogleSource("app@project.iam", credentials))
    assert (account.expires_at, len(credentials.requests)) == (LATER, 1)


# RDS IAM.


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    session = pytest.importorskip("aiobotocore.session").get_session()
    session.set_credentials("AKIDEXAMPLE", "hush-hush", "session/token+x")
    session.set_config_variable("region", "eu-west-1")
    return session


async def test_the_signature_is_that_of_botocores_own_client(session: Any) -> None:
    username = "app user/odd+é"
    async with session.create_client("rds") as client:
        for _ in range(5):  # both must fall into the same second
            theirs = await client.generate_db_auth_token("db.example", 5433, username)
            account = await fetched(RdsIamSource(username, "db.example", 5433, session=session))
            ours = account.password.reveal()
            if ours == theirs:
                break
    assert ours == theirs
    query = parse_qs(urlsplit(f"https://{ours}").query)
    assert (query["DBUser"], query["X-Amz-Expires"]) == ([username], ["900"])
    assert account.expires_at
    assert 890 < (account.expires_at - datetime.now(UTC)).total_seconds() <= 900


async def test_a_token_is_good_for_no_longer_than_the_credentials_that_signed_it(session: Any) -> None:
    ends_at = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)

    async def refresh() -> dict[str, str]:  # which brings nothing newer
        return {"access_key": "AKID", "secret_key": "hush", "token": "t", "expiry_time": ends_at.isoformat()}

    credentials = pytest.importorskip("aiobotocore.credentials")
    session._credentials = credentials.AioRefreshableCredentials.create_from_metadata(await refresh(), refresh, "test")
    account = await fetched(RdsIamSource("app", "db.example", session=session))
    assert account.expires_at == ends_at


async def test_an_rds_source_says_where_its_token_is_good(session: Any) -> None:
    pair = await RdsIamSource("app", "db.example", 5433, session=session).fetch()
    assert pair.endpoint == aiopqr.Endpoint("db.example", 5433)


async def test_without_credentials_or_a_region_an_rds_source_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(key, raising=False)
    for key in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(key, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    get_session = pytest.importorskip("aiobotocore.session").get_session
    with pytest.raises(aiopqr.SourceError, match="set a region with region_name="):
        await RdsIamSource("app", "db.example", session=get_session()).fetch()
    with pytest.raises(aiopqr.SourceError, match="no AWS credentials"):
        await RdsIamSource("app", "db.example", region_name="eu-west-1", session=get_session()).fetch()


@pytest.mark.parametrize(
    ("dsn", "arguments", "problem"),
    [
        ("postgresql://db/app", {}, "needs TLS"),
        ("postgresql://db/app?sslmode=prefer", {}, "needs TLS"),
        ("postgresql://db/app?sslmode=require", {"ssl": False}, "needs TLS"),
        ("postgresql://one,two/app?sslmode=verify-full", {}, "good for one host"),
        ("postgresql:///app?sslmode=verify-full&host=one,two", {}, "good for one host"),
        ("postgresql:///app?sslmode=verify-full", {"host": ["one", "two"]}, "good for one host"),
        ("postgresql://db/app?sslmode=verify-full", {}, None),
        ("postgresql:///app", {"ssl": ssl.create_default_context()}, None),
        ("postgresql:///app", {"ssl": "require", "host": ["db"]}, None),
        ("postgresql:///app?service=two", {"ssl": "require"}, "good for one host"),
        ("postgresql:///app?service=plain", {}, "needs TLS"),
        ("postgresql:///app", {"service": "tls"}, None),
        ("postgresql:///app?service=plain&sslmode=verify-full", {}, None),
    ],
)
def test_an_rds_source_refuses_several_hosts_and_connections_without_tls(
    dsn: str, arguments: dict[str, Any], problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGSSLMODE", "PGHOST"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "services"
    file.write_text("[two]\nhost=one,two\n[plain]\nsslmode=disable\n[tls]\nsslmode=verify-full\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    source = RdsIamSource("app", "db.example")
    with pytest.raises(aiopqr.ConfigurationError, match=problem) if problem else nullcontext():
        source.check_connect((dsn,), arguments)


def test_an_rds_source_refuses_several_hosts_in_the_environment_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGHOST", "one,two")
    source = RdsIamSource("app", "db.example")
    source.check_connect(("postgresql://db/app?sslmode=require",), {})
    with pytest.raises(aiopqr.ConfigurationError, match="good for one host"):
        source.check_connect(("postgresql:///app?sslmode=require",), {})


async def test_a_pool_of_an_rds_source_without_tls_does_not_open(session: Any) -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="needs TLS"):
        async with aiopqr.create_pool(
            "postgresql://127.0.0.1:1/app", credentials=RdsIamSource("app", "db", session=session)
        ):
            pass


def test_several_hosts_need_a_source_each() -> None:
    with pytest.raises(aiopqr.ConfigurationError, match="one instance"):
        RdsIamSource("app", "one,two")
