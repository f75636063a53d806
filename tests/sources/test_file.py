"""The file source, fed as Kubernetes, Vault Agent and careless people do."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import aiopqr
from aiopqr.sources import FileSource
from aiopqr.sources import file as module


def secret(odd: str = "one", **more: object) -> dict[str, object]:
    return {
        "odd_username": "app_odd",
        "odd_password": odd,
        "even_username": "app_even",
        "even_password": "two",
        "active_credential": "odd",
        **more,
    }


def kubelet_writes(mount: Path, version: str, files: dict[str, str]) -> None:
    """Like the kubelet's atomic writer: a new folder, and a symlink swapped to it by a rename."""
    folder = mount / f"..{version}"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
        link = mount / name
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}")
    (mount / "..data_tmp").symlink_to(folder.name)
    os.replace(mount / "..data_tmp", mount / "..data")


def odd_password(pair: aiopqr.CredentialPair) -> str:
    assert pair.odd is not None
    return pair.odd.password.reveal()


async def test_a_json_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(secret()))
    assert odd_password(await FileSource(path).fetch()) == "one"


async def test_a_symlink_swap_is_noticed(tmp_path: Path) -> None:
    kubelet_writes(tmp_path, "v1", {"pair.json": json.dumps(secret())})
    source = FileSource(tmp_path / "pair.json")
    assert odd_password(await source.fetch()) == "one"
    kubelet_writes(tmp_path, "v2", {"pair.json": json.dumps(secret("changed"))})
    assert odd_password(await source.fetch()) == "changed"


async def test_a_mounted_folder_with_a_file_for_each_key_is_read_as_of_one_version(tmp_path: Path) -> None:
    kubelet_writes(tmp_path, "v1", {key: str(value) for key, value in secret().items()})
    source = FileSource(tmp_path)
    first = await source.fetch()
    kubelet_writes(tmp_path, "v2", {key: f"{value}\n" for key, value in secret("changed").items()})
    assert odd_password(first) == "one"
    assert odd_password(await source.fetch()) == "changed"


async def test_a_folder_whose_own_symlink_is_replaced_while_it_is_read_is_read_as_of_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        for key in ("username", "password"):
            (tmp_path / version / key).write_text(f"of_{version}")
    (tmp_path / "orders").symlink_to("one")
    read = module._read_value

    def read_and_replace(path: Path) -> str:
        value = read(path)
        (tmp_path / "new").symlink_to("two")
        os.replace(tmp_path / "new", tmp_path / "orders")
        return value

    monkeypatch.setattr(module, "_read_value", read_and_replace)
    pair = await FileSource(tmp_path / "orders").fetch()
    assert pair == aiopqr.CredentialPair.single(aiopqr.Credential("of_two", "of_two"))


async def test_a_version_that_is_removed_before_its_files_are_listed_gives_no_degraded_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubelet_writes(tmp_path, "v1", {key: str(value) for key, value in secret().items()})
    listed = Path.iterdir

    def remove_and_list(folder: Path) -> Iterator[Path]:
        if folder.name == "..v1":
            kubelet_writes(tmp_path, "v2", {key: str(value) for key, value in secret("changed").items()})
            for key in ("active_credential", "even_password", "even_username"):
                (folder / key).unlink()
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", remove_and_list)
    pair = await FileSource(tmp_path).fetch()
    assert pair.missing is None
    assert odd_password(pair) == "changed"


async def test_a_folder_that_is_replaced_during_every_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubelet_writes(tmp_path, "v0", {key: str(value) for key, value in secret().items()})
    read, versions = module._read_value, count(1)

    def read_and_replace(path: Path) -> str:
        kubelet_writes(tmp_path, f"v{next(versions)}", {key: str(value) for key, value in secret().items()})
        return read(path)

    monkeypatch.setattr(module, "_read_value", read_and_replace)
    with pytest.raises(aiopqr.SourceError, match="was replaced each time it was read"):
        await FileSource(tmp_path).fetch()


async def test_a_value_in_a_folder_keeps_its_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "username").write_bytes(b"app\r\n")
    (tmp_path / "password").write_bytes(b"one\r\ntwo\rthree\r\n")
    assert odd_password(await FileSource(tmp_path).fetch()) == "one\r\ntwo\rthree"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
async def test_a_mounted_secret_of_one_account_is_read_as_its_operator_writes_it(tmp_path: Path, end: str) -> None:
    cloudnativepg = {"username": "app", "user": "app", "password": "one", "host": "db-rw", "port": "5432",
                     "dbname": "app", "uri": "postgresql://app:other@db-rw/app", "jdbc-uri": "x"}  # fmt: skip
    kubelet_writes(tmp_path, "v1", {key: value + end for key, value in cloudnativepg.items()})
    pair = await FileSource(tmp_path).fetch()
    assert pair == aiopqr.CredentialPair.single(aiopqr.Credential("app", "one"))
    assert pair.endpoint == aiopqr.Endpoint("db-rw", 5432, "app")


async def test_a_folder_of_other_keys_says_what_was_expected_and_found(tmp_path: Path) -> None:
    kubelet_writes(tmp_path, "v1", {"login": "app", "secret": "hush"})
    with pytest.raises(aiopqr.SourceError, match=r"expected odd_username.* or username and password; found login, sec"):
        await FileSource(tmp_path).fetch()


async def test_a_value_that_ends_in_more_than_one_line_end_is_named_by_its_key(tmp_path: Path) -> None:
    kubelet_writes(tmp_path, "v1", {"username": "app", "password": "hush\n\n"})
    with pytest.raises(aiopqr.SourceError, match=r"password must not end with white space \(a line feed\)") as caught:
        await FileSource(tmp_path).fetch()
    assert "hush" not in str(caught.value)


async def test_an_unchanged_file_gives_the_same_pair(tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(secret()))
    source = FileSource(path)
    assert await source.fetch() is await source.fetch()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"odd_username": "app_o', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "JSON object"),
        (b'{"odd_username": "hush", "active_credential": "odd"}', "odd_password is missing"),
    ],
)
async def test_a_bad_file_is_told_by_its_path_and_not_by_its_content(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "pair.json"
    path.write_bytes(content)
    with pytest.raises(aiopqr.SourceError, match=message) as caught:
        await FileSource(path).fetch()
    assert str(path) in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(aiopqr.SourceError, match="No such file"):
        await FileSource(tmp_path / "none.json").fetch()


async def test_an_unreadable_path_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    with pytest.raises(aiopqr.SourceError, match="Not a directory"):
        await FileSource(tmp_path / "file" / "below").fetch()


async def test_the_pair_in_use_survives_a_file_that_goes_bad_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(secret()))
    failed = asyncio.Event()
    changed = asyncio.Event()

    def listen(event: object) -> None:
        {"RefreshFailed": failed, "Refreshed": changed}.get(type(event).__name__, asyncio.Event()).set()

    async with aiopqr.Refresher(FileSource(path, interval=0.02), listeners=[listen]) as refresher:
        for damage in (lambda: path.write_text("{"), path.unlink):
            damage()
            await asyncio.wait_for(failed.wait(), 10)
            failed.clear()
            assert odd_password(refresher.pair) == "one"
        path.write_text(json.dumps(secret("changed")))
        await asyncio.wait_for(changed.wait(), 20)
        assert odd_password(refresher.pair) == "changed"


async def test_another_format_is_read_by_the_users_own_parser(tmp_path: Path) -> None:
    path = tmp_path / "pair.env"
    path.write_text("ODD=one\n")

    def parse(content: object) -> aiopqr.CredentialPair:
        assert isinstance(content, bytes)
        return aiopqr.CredentialPair(aiopqr.Credential("app_odd", content.decode().split("=")[1].strip()), None)

    assert odd_password(await FileSource(path, parse=parse).fetch()) == "one"


async def test_a_file_that_hangs_takes_one_thread_of_the_sources_own_and_none_of_anybody_else(tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(secret()))
    source = FileSource(path, interval=0.02)
    async with aiopqr.Refresher(source, timeout=0.3) as refresher:
        before = set(threading.enumerate())
        path.unlink()
        os.mkfifo(path)  # opening it waits until somebody writes
        async with asyncio.timeout(20):
            while refresher.stats().failed < 5:
                await asyncio.sleep(0.01)
        assert set(threading.enumerate()) <= before
        assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("aiopqr-file"))
        content = json.dumps(secret("changed")).encode()
        writer = os.open(path, os.O_RDWR)
        os.write(writer, content)
        (tmp_path / "new").write_bytes(content)
        os.replace(tmp_path / "new", path)
        os.close(writer)
        async with asyncio.timeout(20):
            while odd_password(refresher.pair) != "changed":
                await asyncio.sleep(0.01)
