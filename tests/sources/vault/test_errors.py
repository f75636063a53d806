"""Vault errors are classified: those of a real OpenBao if it can be made to fail, or else of a stub."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.vault import PAIR, closing

from aiopqr.errors import MissingExtra
from aiopqr.sources import VaultSource
from aiopqr.sources.trouble import Trouble
from aiopqr.sources.vault import TokenFile, VaultError
from aiopqr.testing import Vault
from aiopqr.testing.server import in_a_thread


class Stub(BaseHTTPRequestHandler):
    """Gives every request the same answer."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""
    headers_: ClassVar[dict[str, str]] = {}
    requests: ClassVar[int] = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(self.status)
        for name, value in {"Content-Length": str(len(self.body)), **self.headers_}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[type[Stub]]:
    class Own(Stub):
        url: ClassVar[str]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    Own.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Own
    server.shutdown()
    server.server_close()
    thread.join()


async def failure(**options: Any) -> VaultError:
    source = VaultSource.kv("orders", **{"start_spread": 0, "timeout": 2.0, "token": "hunter2", **options})
    try:
        with pytest.raises(VaultError) as caught:
            await source.fetch()
    finally:
        await source.aclose()
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def said(*errors: str) -> bytes:
    return json.dumps({"errors": errors}).encode()


@pytest.mark.parametrize(
    ("status", "body", "trouble", "words"),
    [
        (400, said("missing path"), Trouble.INVALID, "missing path"),
        (403, said("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"), Trouble.CREDENTIALS, "auth="),
        (404, said(), Trouble.NOT_FOUND, "mount="),
        (429, said("request path exceeded"), Trouble.THROTTLED, "rate limit"),
        (500, said("local node not active but active cluster node not found"), Trouble.STANDBY, "without an active"),
        (500, said("internal error"), Trouble.OTHER, "Vault failed"),
        (501, said("not initialized"), Trouble.SEALED, "unseal"),
        (503, b"<html>no healthy upstream</html>", Trouble.NETWORK, "address"),
        (200, b"<html>a login page</html>", Trouble.OTHER, "Vault failed"),
        (200, b'{"data": null}', Trouble.OTHER, "makes no sense"),
        (200, b"[]", Trouble.OTHER, "makes no sense"),
    ],
)
async def test_an_answer_is_told_by_what_there_is_to_do(
    stub: Any, status: int, body: bytes, trouble: Trouble, words: str
) -> None:
    stub.status, stub.body = status, body
    error = await failure(url=stub.url)
    assert error.trouble is trouble
    assert words in str(error)


async def test_a_throttled_source_asks_no_more_until_it_may(stub: Any) -> None:
    stub.status, stub.body, stub.headers_ = 429, said("quota"), {"Retry-After": "30"}
    source = VaultSource.kv("orders", url=stub.url, token="t", start_spread=0)
    for _ in range(3):
        with pytest.raises(VaultError, match="allows the next request in 30 s") as caught:
            await source.fetch()
        assert caught.value.trouble is Trouble.THROTTLED
        assert caught.value.retry_after == pytest.approx(30.0, abs=1.0)
    assert stub.requests == 1
    await source.aclose()


async def test_a_sealed_vault_is_told_so_and_serves_again_when_it_is_unsealed() -> None:
    async with Vault() as vault:
        await vault.put("orders", PAIR)
        source = VaultSource.kv("orders", start_spread=0, **vault.options)
        await in_a_thread(vault.seal)
        assert (await failure(**vault.options)).trouble is Trouble.SEALED
        await in_a_thread(vault.unseal)
        assert (await source.fetch()).even is not None
        await in_a_thread(vault.kill)
        with pytest.raises(VaultError, match="no answer") as caught:
            await source.fetch()
        assert caught.value.trouble is Trouble.NETWORK
        await in_a_thread(vault.resume)
        assert (await source.fetch()).even is not None
        await source.aclose()


@pytest.mark.parametrize("more", [{}, {"no_default_policy": True}])
async def test_a_policy_that_lacks_a_right_is_told_from_a_token_that_is_no_good(
    vault: Vault, more: dict[str, Any], tmp_path: Path
) -> None:
    token = await vault.token_for('path "secret/data/other" { capabilities = ["read"] }', **more)
    denied = await failure(**{**vault.options, "token": token})
    assert denied.trouble is Trouble.DENIED
    assert "secret/data/orders" in str(denied)
    await vault.revoke(token)
    assert (await failure(**{**vault.options, "token": token})).trouble is Trouble.CREDENTIALS
    assert (await failure(**{**vault.options, "token": ""})).trouble is Trouble.CREDENTIALS
    missing = await failure(url=vault.url, token=None, auth=TokenFile(tmp_path / "token"))
    assert f"{tmp_path}/token: No such file" in str(missing)


async def test_tls_is_verified_by_the_authority_that_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with Vault(tls=True) as vault:
        await vault.put("orders", PAIR)
        assert (await failure(url=vault.url)).trouble is Trouble.TLS
        assert (await failure(url=vault.url, verify=str(tmp_path / "none.pem"))).trouble is Trouble.TLS
        for key, value in {"ADDR": vault.url, "TOKEN": vault.token.reveal(), "CACERT": vault.ca_file or ""}.items():
            monkeypatch.setenv(f"VAULT_{key}", value)
        source = VaultSource.kv("orders", start_spread=0)
        assert (await source.fetch()).odd is not None
        await source.aclose()


async def test_a_client_certificate_is_shown_where_vault_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Vault(asks_for_certificate=True) as vault:
        await vault.put("orders", PAIR)
        given = vault.options
        cert, key = given.pop("cert")
        assert (await failure(**given)).trouble is Trouble.TLS
        assert (await failure(**given, cert=(cert, "/nowhere/key.pem"))).trouble is Trouble.TLS
        async with closing(VaultSource.kv("orders", start_spread=0, cert=(cert, key), **given)) as source:
            assert (await source.fetch()).odd is not None
        environment = {"ADDR": vault.url, "TOKEN": vault.token.reveal(), "CACERT": vault.ca_file or ""}
        for name, value in {**environment, "CLIENT_CERT": cert, "CLIENT_KEY": key}.items():
            monkeypatch.setenv(f"VAULT_{name}", value)
        async with closing(VaultSource.kv("orders", start_spread=0)) as source:
            assert (await source.fetch()).odd is not None


async def test_plain_http_beyond_this_machine_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert (await failure(url="http://user:hunter2@vault.invalid:8200")).trouble is Trouble.NETWORK
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text for text in warned if "unencrypted" in text] == [
        "Vault at http://vault.invalid:8200: tokens and passwords cross the network unencrypted; use https"
    ]
    assert "hunter2" not in caplog.text


async def test_without_hvac_a_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hvac", None)
    with pytest.raises(MissingExtra, match=r"pip install 'aiopqr\[vault\]'"):
        await VaultSource.kv("orders", start_spread=0, token="hunter2").fetch()


async def test_a_redirect_from_https_to_http_is_not_followed(stub: Any) -> None:
    from aiopqr.sources.vault.reach import new_client

    client = new_client(verify=True, cert=None, url="https://vault", token="t")
    answer: Any = type(
        "Answer", (), {"is_redirect": True, "headers": {"location": stub.url}, "url": "https://vault/v1"}
    )
    assert client.session.get_redirect_target(answer) is None
    answer.headers = {"location": "https://other/v1"}
    assert client.session.get_redirect_target(answer) == "https://other/v1"
    client.adapter.close()
