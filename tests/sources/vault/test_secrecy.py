"""Vault's tokens, and the passwords that it gives, are seen by nobody else; forks and namespaces are kept apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.vault import PAIR, closing

from aiopqr.credentials import CredentialPair
from aiopqr.rotation.stores.vault import VaultStore
from aiopqr.sources import VaultSource
from aiopqr.sources.vault import AppRole, VaultError
from aiopqr.testing import Vault, VaultDatabase


def passwords(*pairs: CredentialPair) -> list[str]:
    return [account.password.reveal() for pair in pairs for account in pair.credentials()]


async def test_no_log_holds_a_token_or_a_password_at_any_level(
    vault_database: VaultDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    vault, mount = vault_database.vault, f"auth-{secrets.token_hex(4)}"
    await vault_database.static_roles()
    await vault_database.dynamic_role("app", ttl="2s")
    await vault.put("logged", PAIR)
    token = await vault.token_for('path "*" { capabilities = ["read", "update"] }', ttl="10s")
    await vault.ask("POST", f"sys/auth/{mount}", type="approle")
    await vault.ask("POST", f"auth/{mount}/role/app", token_policies=["default"])
    role_id = (await vault.ask("GET", f"auth/{mount}/role/app/role-id"))["data"]["role_id"]
    secret_id = (await vault.ask("POST", f"auth/{mount}/role/app/secret-id", num_uses=0))["data"]["secret_id"]
    caplog.set_level(logging.DEBUG)
    for name in ("hvac", "requests", "urllib3", "aiopqr"):
        caplog.set_level(logging.DEBUG, logger=name)
    options = {**vault_database.options, "token": token, "start_spread": 0}
    sources = [
        VaultSource.static_roles("odd", "even", **options),
        VaultSource.dynamic("app", **options),
        VaultSource.kv("logged", start_spread=0, url=vault.url, token=token),
    ]
    async with contextlib.AsyncExitStack() as stack:
        seen = [token, secret_id, vault.token.reveal()]
        for source in sources:
            await stack.enter_async_context(closing(source))
            source._client._look_up_at = 1e-9  # the token is looked up, and then renewed, immediately
            seen += passwords(await source.fetch(), await source.fetch())
        denied = VaultSource.kv("logged", start_spread=0, url=vault.url, auth=AppRole(role_id, secret_id, mount=mount))
        await stack.enter_async_context(closing(denied))
        with pytest.raises(VaultError):
            await denied.fetch()
        seen.append(denied._client._hvac.token)
        await asyncio.sleep(0.9)
        seen += passwords(await sources[1].fetch())  # leases are renewed
    assert any(record.name.startswith("urllib3") for record in caplog.records), "they do log"
    logged = caplog.text + repr([(record.args, record.exc_info, record.__dict__) for record in caplog.records])
    assert [secret for secret in seen if secret in logged] == []


_SERVICE = """
import asyncio, sys
from aiopqr.sources import VaultSource

async def main():
    source = VaultSource.dynamic("app", mount=sys.argv[1], start_spread=0)
    pair = await source.fetch()
    print(*(account.password.reveal() for account in pair.credentials()), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await source.aclose()

asyncio.run(main())
"""


async def test_no_process_shows_a_token_or_a_password(vault_database: VaultDatabase) -> None:
    """The token that a user puts into the environment stays there, and appears in no command line."""
    await vault_database.dynamic_role("app")
    vault = vault_database.vault
    token = vault.token.reveal()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _SERVICE, vault_database.mount),
        env={**os.environ, "VAULT_ADDR": vault.url, "VAULT_TOKEN": token},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        given = (await process.stdout.readline()).decode().split()
        assert len(given) == 2
        owner = Path(f"/proc/{process.pid}")
        for folder in Path("/proc").glob("[0-9]*"):
            shown = _content(folder / "cmdline") + (b"" if folder == owner else _content(folder / "environ"))
            assert not [secret for secret in (*given, token, vault._key.reveal()) if secret.encode() in shown], folder
        assert not [secret for secret in given if secret.encode() in _content(owner / "environ")]
    finally:
        await process.communicate(b"\n")
    assert process.returncode == 0
    assert await vault_database.leases("app") == []


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


_FORKING = """
import asyncio, json, os, sys
from aiopqr.sources import VaultSource

source = VaultSource.dynamic("app", mount=sys.argv[1], start_spread=0)

def names():
    return [account.username for account in asyncio.run(source.fetch()).credentials()]

parent = names()
read, write = os.pipe()
if (pid := os.fork()) == 0:
    os.write(write, json.dumps(names()).encode())
    asyncio.run(source.aclose())
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
child = json.loads(os.read(read, 10000))
print(json.dumps([parent, child, names()]), flush=True)
sys.stdin.readline()
asyncio.run(source.aclose())
"""


async def test_a_forked_process_has_leases_of_its_own_and_revokes_no_others(vault_database: VaultDatabase) -> None:
    await vault_database.dynamic_role("app")
    vault = vault_database.vault
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKING, vault_database.mount),
        env={**os.environ, "VAULT_ADDR": vault.url, "VAULT_TOKEN": vault.token.reveal()},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    parent, child, after = json.loads(await process.stdout.readline())
    assert (len(parent), len(child), len({*parent, *child})) == (2, 2, 4)
    assert after == parent
    assert len(await vault_database.leases("app")) == 2, "the child has revoked its own, and only those"
    await process.communicate(b"\n")
    assert process.returncode == 0
    assert await vault_database.leases("app") == []


async def test_a_namespace_has_secrets_and_logins_of_its_own(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    team = f"team-{secrets.token_hex(4)}"
    await vault.ask("POST", f"sys/namespaces/{team}")
    await vault.ask("POST", f"{team}/sys/mounts/secret", type="kv", options={"version": "2"})
    await vault.ask("POST", f"{team}/sys/auth/approle", type="approle")
    policy = 'path "secret/*" { capabilities = ["create", "read", "update"] }'
    await vault.ask("POST", f"{team}/sys/policies/acl/app", policy=policy)
    await vault.ask("POST", f"{team}/auth/approle/role/app", token_policies=["app"])
    role_id = (await vault.ask("GET", f"{team}/auth/approle/role/app/role-id"))["data"]["role_id"]
    secret_id = (await vault.ask("POST", f"{team}/auth/approle/role/app/secret-id", num_uses=0))["data"]["secret_id"]
    pair = CredentialPair.from_secret(PAIR)
    login = {"url": vault.url, "auth": AppRole(role_id, secret_id)}
    async with VaultStore("spaced", namespace=team, **login) as store:
        await store.create(pair, changed_at=datetime.now(UTC))
        await store.check_writable()
    async with closing(VaultSource.kv("spaced", start_spread=0, namespace=team, **login)) as source:
        assert await source.fetch() == pair
    monkeypatch.setenv("VAULT_NAMESPACE", team)
    async with closing(VaultSource.kv("spaced", start_spread=0, **login)) as source:
        assert await source.fetch() == pair
    monkeypatch.delenv("VAULT_NAMESPACE")
    async with closing(VaultSource.kv("spaced", start_spread=0, **vault.options)) as source:
        with pytest.raises(VaultError, match="check the name, mount= and namespace="):
            await source.fetch()
