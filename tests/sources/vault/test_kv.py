"""A secret of a KV engine, on a real OpenBao."""

from __future__ import annotations

import json
import logging
import secrets
import traceback
from typing import Any

import pytest
from support.vault import PAIR, closing

from aiopqr import Credential, Parity
from aiopqr.sources import VaultSource
from aiopqr.sources.trouble import Trouble
from aiopqr.sources.vault import VaultError
from aiopqr.testing import Vault


@pytest.fixture
async def path(vault: Vault) -> str:
    path = f"orders/{secrets.token_hex(4)}"
    await vault.put(path, PAIR)
    return path


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that are made, as ``GET secret/data/...``."""
    import hvac.adapters

    made: list[str] = []
    original = hvac.adapters.RawAdapter.request

    def request(adapter: Any, method: str, url: str, **more: Any) -> Any:
        made.append(f"{method} {url.removeprefix('/v1/')}")
        return original(adapter, method, url, **more)

    monkeypatch.setattr(hvac.adapters.RawAdapter, "request", request)
    return made


async def test_a_pair_is_read_and_its_value_only_when_there_is_a_new_version(
    vault: Vault, path: str, requests: list[str]
) -> None:
    value, metadata = f"GET secret/data/{path}", f"GET secret/metadata/{path}"
    async with closing(VaultSource.kv(path, start_spread=0, **vault.options)) as source:
        pair = await source.fetch()
        assert (pair.odd, pair.active) == (Credential("app_odd", "odd-hunter2"), Parity.EVEN)
        assert requests == [value]
        await source.fetch()
        assert requests == [value, metadata]
        await vault.put(path, {**PAIR, "odd_password": "new"})
        assert (await source.fetch()).odd == Credential("app_odd", "new")
        assert requests[2:] == [metadata, value]


async def test_a_secret_that_was_removed_and_written_anew_is_a_new_version(vault: Vault, path: str) -> None:
    async with closing(VaultSource.kv(path, start_spread=0, **vault.options)) as source:
        await source.fetch()
        await vault.ask("DELETE", f"secret/metadata/{path}")
        await vault.put(path, {**PAIR, "odd_password": "new"})
        assert (await source.fetch()).odd == Credential("app_odd", "new")


async def test_a_deleted_version_is_told_so_also_when_its_value_is_known(vault: Vault, path: str) -> None:
    async with closing(VaultSource.kv(path, start_spread=0, **vault.options)) as source:
        await source.fetch()
        await vault.ask("DELETE", f"secret/data/{path}")
        with pytest.raises(VaultError, match="undelete") as known:
            await source.fetch()
        await source.aclose()
        with pytest.raises(VaultError, match="undelete") as unknown:
            await VaultSource.kv(path, start_spread=0, **vault.options).fetch()
        assert known.value.trouble is unknown.value.trouble is Trouble.DELETED
        await vault.ask("POST", f"secret/undelete/{path}", versions=[1])
        await source.fetch()


@pytest.mark.parametrize(("path", "mount"), [("no/such", "secret"), ("orders", "no-such-mount")])
async def test_what_is_not_there_is_told_so(vault: Vault, path: str, mount: str) -> None:
    async with closing(VaultSource.kv(path, mount=mount, start_spread=0, **vault.options)) as source:
        with pytest.raises(VaultError, match=rf"{mount}/data/{path}.*check the name, mount=") as caught:
            await source.fetch()
    assert caught.value.trouble is Trouble.NOT_FOUND


async def test_without_the_right_to_the_metadata_the_value_is_read_each_time(
    vault: Vault, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = await vault.token_for('path "secret/data/*" { capabilities = ["read"] }')
    options = {**vault.options, "token": token}
    async with closing(VaultSource.kv(path, start_spread=0, **options)) as source:
        await source.fetch()
        for password in ("one", "two"):
            await vault.put(path, {**PAIR, "odd_password": password})
            assert (await source.fetch()).odd == Credential("app_odd", password)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert f"Allow read on secret/metadata/{path}" in warned[0]


@pytest.mark.parametrize("nonsense", [{"odd_username": "hunter2"}, {"odd_password": ["hunter2"]}, {}])
async def test_nonsense_is_told_by_its_key_and_never_by_its_value(
    vault: Vault, path: str, nonsense: dict[str, Any]
) -> None:
    await vault.put(path, nonsense)
    async with closing(VaultSource.kv(path, start_spread=0, **vault.options)) as source:
        with pytest.raises(VaultError, match=path) as caught:
            await source.fetch()
    assert caught.value.trouble is Trouble.INVALID
    assert "hunter2" not in str(caught.value)


async def test_no_token_and_no_password_is_in_a_log_a_repr_or_an_error(
    vault: Vault, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = await vault.token_for('path "secret/*" { capabilities = ["read"] }')
    texts = []
    async with closing(VaultSource.kv(path, start_spread=0, **{**vault.options, "token": token})) as source:
        await source.fetch()
        texts.append(repr(source))
        await vault.put(path, {**PAIR, "odd_password": ["odd-hunter2"]})
        for _ in range(2):
            try:
                await source.fetch()
            except VaultError as exc:
                frames = list(traceback.walk_tb(exc.__traceback__))[1:]  # without this function, which knows the token
                texts += traceback.StackSummary.extract(frames, capture_locals=True).format()
                texts.append(str(exc))
            await vault.revoke(token)
    assert len(texts) > 4
    texts += [json.dumps(vars(record), default=repr) + record.getMessage() for record in caplog.records]
    assert any("urllib3" in line for line in texts)
    for line in texts:
        assert token not in line
        assert "hunter2" not in line
