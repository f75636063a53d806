"""Ways to log in, on a real OpenBao, and tokens that expire."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hvac
import pytest
import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from support.vault import PAIR

from aiopqr.sources import VaultSource
from aiopqr.sources.trouble import Trouble
from aiopqr.sources.vault import JWT, AppRole, Kubernetes, TokenFile, VaultError
from aiopqr.testing import ServerError, Vault

POLICY = 'path "secret/*" { capabilities = ["read"] }'


@pytest.fixture
async def mount(vault: Vault) -> str:
    """A name for an auth method's mount; the secret and the policy that logins need are there."""
    await vault.put("logins", PAIR)
    await vault.ask("POST", "sys/policies/acl/logins", policy=POLICY)
    return f"auth-{secrets.token_hex(4)}"


async def fetched(vault: Vault, auth: Any) -> VaultSource:
    source = VaultSource.kv("logins", start_spread=0, url=vault.url, auth=auth)
    assert (await source.fetch()).odd is not None
    return source


async def app_role(vault: Vault, mount: str, **options: Any) -> AppRole:
    await vault.ask("POST", f"sys/auth/{mount}", type="approle")
    await vault.ask("POST", f"auth/{mount}/role/app", token_policies=["logins"], **options)
    role_id = (await vault.ask("GET", f"auth/{mount}/role/app/role-id"))["data"]["role_id"]
    secret_id = (await vault.ask("POST", f"auth/{mount}/role/app/secret-id", num_uses=0))["data"]["secret_id"]
    return AppRole(role_id, secret_id, mount=mount)


async def logins(vault: Vault, mount: str) -> int:
    """How many of the method's tokens are still valid."""
    found = 0
    for accessor in (await vault.ask("LIST", "auth/token/accessors"))["data"]["keys"]:
        try:
            data = (await vault.ask("POST", "auth/token/lookup-accessor", accessor=accessor))["data"]
        except ServerError:
            continue  # it has just ended
        found += data["path"] == f"auth/{mount}/login"
    return found


async def test_an_approle_logs_in_and_its_token_is_renewed(vault: Vault, mount: str) -> None:
    auth = await app_role(vault, mount, token_ttl="2s")
    assert "secret" not in repr(auth)
    source = await fetched(vault, auth)
    until = time.monotonic() + 3.5
    while time.monotonic() < until:
        pair = await source.fetch()
        assert pair.refresh_in is not None
        assert pair.refresh_in <= 1.2
        await asyncio.sleep(0.3)
    assert await logins(vault, mount) == 1
    await source.aclose()


async def test_a_token_that_cannot_be_renewed_any_more_is_replaced_by_a_new_login(vault: Vault, mount: str) -> None:
    source = await fetched(vault, await app_role(vault, mount, token_ttl="2s", token_max_ttl="3s"))
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        await source.fetch()
        await asyncio.sleep(0.3)
    assert await logins(vault, mount) >= 1
    await source.aclose()


async def test_a_revoked_token_is_replaced_at_once(vault: Vault, mount: str) -> None:
    source = await fetched(vault, await app_role(vault, mount))
    await vault.ask("POST", f"sys/leases/revoke-prefix/auth/{mount}/login", sync=True)
    assert (await source.fetch()).odd is not None
    await source.aclose()


async def test_a_wrong_secret_id_is_told_so_without_it(vault: Vault, mount: str, tmp_path: Path) -> None:
    auth = await app_role(vault, mount)
    (tmp_path / "secret-id").write_text("hunter2\n")
    for wrong in (
        AppRole(auth._role_id, "hunter2", mount=mount),
        AppRole(auth._role_id, secret_id_file=tmp_path / "secret-id", mount=mount),
    ):
        with pytest.raises(VaultError, match=r"login to Vault at .* by AppRole") as caught:
            await fetched(vault, wrong)
        assert "hunter2" not in str(caught.value) + repr(wrong)


async def test_a_token_that_was_given_is_renewed(vault: Vault, mount: str) -> None:
    token = await vault.token_for(POLICY, ttl="2s")
    source = VaultSource.kv("logins", start_spread=0, url=vault.url, token=token)
    source._client._look_up_at = time.monotonic()  # which is some seconds later else
    until = time.monotonic() + 4.0
    while time.monotonic() < until:
        await source.fetch()
        await asyncio.sleep(0.3)
    await source.aclose()


async def test_the_end_of_a_token_that_cannot_be_renewed_is_announced(
    vault: Vault, mount: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = await vault.token_for(POLICY, ttl="2s", renewable=False)
    source = VaultSource.kv("logins", start_spread=0, url=vault.url, token=token)
    source._client._look_up_at = time.monotonic()  # which is some seconds later else

    async def until_it_fails() -> None:
        while True:
            await source.fetch()
            await asyncio.sleep(0.2)

    with pytest.raises(VaultError) as caught:
        await asyncio.wait_for(until_it_fails(), 40.0)
    assert caught.value.trouble is Trouble.CREDENTIALS
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "cannot be renewed (it is not renewable); pass auth=" in warned[0]
    await source.aclose()


async def test_a_token_file_is_read_again(vault: Vault, mount: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    first, second = await vault.token_for(POLICY), await vault.token_for(POLICY)
    file.write_text(first + "\n")
    source = await fetched(vault, TokenFile(file))
    file.write_text(second)
    await vault.revoke(first)
    assert (await source.fetch()).odd is not None
    await source.aclose()


async def test_a_client_of_the_users_own_is_used_and_left_open(vault: Vault, mount: str) -> None:
    client = hvac.Client(**vault.options)
    source = VaultSource.kv("logins", start_spread=0, client=client)
    await source.fetch()
    await source.aclose()
    assert client.is_authenticated()
    client.adapter.close()


# Tokens that somebody else signs.


class Signer:
    """An issuer of JSON Web Tokens."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)

    @property
    def public(self) -> str:
        pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_key().public_bytes(pem, spki).decode()

    def token(self, **claims: Any) -> str:
        now = int(time.time())
        parts = [{"alg": "RS256", "typ": "JWT"}, {"iat": now, "nbf": now - 5, "exp": now + 600, **claims}]
        text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        return f"{text}.{_base64(self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


async def test_a_jwt_logs_in(vault: Vault, mount: str, tmp_path: Path) -> None:
    signer, file = Signer(), tmp_path / "jwt"
    file.write_text(signer.token(sub="orders", aud="vault"))
    await vault.ask("POST", f"sys/auth/{mount}", type="jwt")
    await vault.ask("POST", f"auth/{mount}/config", jwt_validation_pubkeys=[signer.public])
    await vault.ask(
        "POST",
        f"auth/{mount}/role/app",
        role_type="jwt",
        user_claim="sub",
        bound_audiences=["vault"],
        token_policies=["logins"],
    )
    await (await fetched(vault, JWT("app", file, mount=mount))).aclose()
    file.write_text(token := signer.token(sub="orders", aud="other"))
    with pytest.raises(VaultError, match=r"login to Vault at .* by JWT") as caught:
        await fetched(vault, JWT("app", file, mount=mount))
    assert token not in str(caught.value)


@pytest.fixture
def cluster() -> Iterator[str]:
    """Kubernetes' TokenReview, which accepts every token as that of one service account."""

    class Reviewer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            user = {"username": "system:serviceaccount:shop:orders", "uid": "1", "groups": []}
            review = {"kind": "TokenReview", "status": {"authenticated": True, "user": user}}
            body = json.dumps({"apiVersion": "authentication.k8s.io/v1", **review}).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Reviewer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_pods_service_account_logs_in(vault: Vault, mount: str, tmp_path: Path, cluster: str) -> None:
    account = {"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "orders", "uid": "1"}}}
    (tmp_path / "token").write_text(Signer().token(sub="system:serviceaccount:shop:orders", **account))
    await vault.ask("POST", f"sys/auth/{mount}", type="kubernetes")
    await vault.ask(
        "POST",
        f"auth/{mount}/config",
        kubernetes_host=cluster,
        kubernetes_ca_cert=trustme.CA().cert_pem.bytes().decode(),
        disable_iss_validation=True,
        token_reviewer_jwt="reviewer",
    )
    await vault.ask(
        "POST",
        f"auth/{mount}/role/app",
        bound_service_account_names=["orders"],
        bound_service_account_namespaces=["shop"],
        token_policies=["logins"],
    )
    source = await fetched(vault, Kubernetes("app", mount=mount, token_file=tmp_path / "token"))
    await source.aclose()
