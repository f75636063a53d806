"""The JSON file as a store: each change is atomic, durable, exclusive and keeps what is not its own."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.rotation.errors import StoreConflict, StoreError
from aiopqr.rotation.stores.file import FileStore
from aiopqr.rotation.stores.store import SecretStore, StoredSecret
from aiopqr.sources import FileSource

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
DOCUMENT = {
    "engine": "postgres",
    "odd_username": "app_odd",
    "odd_password": "odd-1",
    "port": 5432,
    "even_username": "app_even",
    "even_password": "even-1",
    "active_credential": "even",
    "even_changed_at": "2025-03-01T11:00:00+00:00",
    "note": "grüße \U0001f600",
}
NEW = Credential("app_odd", "odd-2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(DOCUMENT, indent=4))
    return path


async def test_a_file_store_is_a_secret_store(path: Path) -> None:
    assert isinstance(FileStore(path), SecretStore)


async def test_reading_tells_the_pair_the_change_times_and_the_other_keys(path: Path) -> None:
    secret = await FileStore(path).read()
    assert secret.pair.odd == Credential("app_odd", "odd-1")
    assert secret.pair.active is Parity.EVEN
    assert secret.changed_at(Parity.EVEN) == NOON - timedelta(hours=1)
    assert secret.changed_at(Parity.ODD) is None
    assert secret.other == {key: DOCUMENT[key] for key in ("engine", "port", "note")}


@pytest.mark.parametrize("text", ["yesterday", "2025-03-01T12:00:00", 1740830400, None])
async def test_a_change_time_without_an_offset_or_sense_counts_as_not_known(path: Path, text: object) -> None:
    path.write_text(json.dumps(DOCUMENT | {"odd_changed_at": text}))
    assert (await FileStore(path).read()).odd_changed_at is None


async def test_a_change_time_of_another_zone_is_read_as_utc(path: Path) -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    path.write_text(json.dumps(DOCUMENT | {"odd_changed_at": elsewhere.isoformat()}))
    assert (await FileStore(path).read()).odd_changed_at == NOON


async def test_a_stage_leaves_the_pair_as_it_is_for_every_reader(path: Path) -> None:
    store = FileStore(path)
    staged = await store.stage(await store.read(), NEW)
    assert staged == await store.read()
    assert staged.pair.pending == NEW
    assert staged.staged_at is not None
    fetched = await FileSource(path).fetch()
    assert fetched.odd == Credential("app_odd", "odd-1")
    assert (fetched.active, fetched.pending) == (Parity.EVEN, NEW)


async def test_a_promoted_password_is_the_accounts_own_and_the_account_active(path: Path) -> None:
    store = FileStore(path)
    staged = await store.stage(await store.read(), NEW)
    promoted = await store.promote(staged, changed_at=NOON)
    assert promoted == await store.read()
    assert promoted.pair.odd == NEW
    assert (promoted.pair.active, promoted.pair.pending, promoted.staged_at) == (Parity.ODD, None, None)
    assert promoted.odd_changed_at == NOON
    assert promoted.even_changed_at == NOON - timedelta(hours=1)


async def test_an_abandoned_stage_leaves_no_trace(path: Path) -> None:
    store = FileStore(path)
    before = await store.read()
    await store.abandon(await store.stage(before, NEW))
    assert json.loads(path.read_text()) == DOCUMENT


async def test_other_keys_survive_in_value_and_order(path: Path) -> None:
    store = FileStore(path)
    await store.promote(await store.stage(await store.read(), NEW), changed_at=NOON)
    after = json.loads(path.read_text())
    assert [key for key in after if key in DOCUMENT] == list(DOCUMENT)
    assert {key: after[key] for key in ("engine", "port", "note")} == {
        key: DOCUMENT[key] for key in ("engine", "port", "note")
    }


@pytest.mark.parametrize("change", ["stage", "promote", "abandon"])
async def test_a_change_decided_on_an_older_revision_is_refused_and_changes_nothing(path: Path, change: str) -> None:
    store = FileStore(path)
    secret = await store.read()
    if change != "stage":
        secret = await store.stage(secret, NEW)
    path.write_text(path.read_text().replace("even-1", "even-2"))
    before = path.read_bytes()
    with pytest.raises(StoreConflict):
        await _change(store, secret, change)
    assert path.read_bytes() == before


async def test_a_second_stage_is_refused_while_one_is_open(path: Path) -> None:
    store = FileStore(path)
    staged = await store.stage(await store.read(), NEW)
    with pytest.raises(StoreConflict, match="already staged"):
        await store.stage(staged, NEW)


@pytest.mark.parametrize("change", ["promote", "abandon"])
async def test_nothing_staged_cannot_be_promoted_or_abandoned(path: Path, change: str) -> None:
    store = FileStore(path)
    with pytest.raises(StoreConflict, match="no new password is staged"):
        await _change(store, await store.read(), change)


async def test_a_password_of_a_stranger_cannot_be_staged(path: Path) -> None:
    store = FileStore(path)
    with pytest.raises(StoreError, match="pending_username"):
        await store.stage(await store.read(), Credential("mallory", "x"))


async def test_of_many_rotators_with_one_revision_exactly_one_wins(path: Path) -> None:
    store = FileStore(path)
    secret = await store.read()
    stages = [FileStore(path).stage(secret, Credential("app_odd", f"candidate-{n}")) for n in range(8)]
    results = await asyncio.gather(*stages, return_exceptions=True)
    winners = [result for result in results if isinstance(result, StoredSecret)]
    assert [type(result) for result in results if result not in winners] == [StoreConflict] * 7
    assert winners == [await store.read()]


async def test_rotators_in_several_processes_exclude_each_other_too(path: Path) -> None:
    code = """
import asyncio, sys
from aiopqr.credentials import Credential
from aiopqr.rotation.stores import FileStore
from aiopqr.rotation.errors import StoreConflict
async def main(path, number):
    store = FileStore(path)
    secret = await store.read()
    print("read", flush=True)
    sys.stdin.readline()
    try:
        await store.stage(secret, Credential("app_odd", "candidate-" + number))
        print("won")
    except StoreConflict:
        print("lost")
asyncio.run(main(*sys.argv[1:]))
"""
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)], **pipe) for n in range(3)]  # type: ignore[call-overload]
    for racer in racers:
        assert racer.stdout.readline() == "read\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.communicate(timeout=30)[0].strip() for racer in racers]
    assert sorted(answers) == ["lost", "lost", "won"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
async def test_the_mode_of_the_file_is_kept(path: Path, mode: int) -> None:
    path.chmod(mode)
    store = FileStore(path)
    await store.stage(await store.read(), NEW)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_the_owner_of_the_file_is_kept(path: Path) -> None:
    os.chown(path, 65534, 65533)
    store = FileStore(path)
    await store.stage(await store.read(), NEW)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


async def test_a_file_whose_owner_cannot_be_kept_is_not_touched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs a file of another owner")
    os.chown(path, 65534, 65533)
    monkeypatch.setattr(os, "fchown", _refuse)
    store = FileStore(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="belongs to 65534:65533"):
        await store.stage(await store.read(), NEW)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


async def test_a_symlink_still_points_to_the_file_which_has_the_change(path: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current.json"
    link.symlink_to(path)
    store = FileStore(link)
    await store.stage(await store.read(), NEW)
    assert link.is_symlink()
    assert (await FileStore(path).read()).pair.pending == NEW
    assert os.listdir(link.parent) == ["current.json"]


async def test_a_new_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    pair = CredentialPair(Credential("app_odd", "1"), Credential("app_even", "2"))
    store = FileStore(tmp_path / "new.json")
    created = await store.create(pair, changed_at=NOON)
    assert stat.S_IMODE((tmp_path / "new.json").stat().st_mode) == 0o600
    assert created == await store.read()
    assert (created.pair, created.odd_changed_at, created.even_changed_at) == (pair, NOON, NOON)


async def test_a_new_file_never_replaces_one_that_exists(path: Path) -> None:
    before = path.read_bytes()
    pair = CredentialPair(Credential("app_odd", "1"), Credential("app_even", "2"))
    with pytest.raises(StoreConflict, match="exists"):
        await FileStore(path).create(pair, changed_at=NOON)
    assert path.read_bytes() == before


async def test_a_failed_write_leaves_the_old_content_and_no_litter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(path)
    secret = await store.read()
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _refuse)
        with pytest.raises(StoreError, match="No space"):
            await store.stage(secret, NEW)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


async def test_what_a_killed_writer_left_is_removed_by_the_next_change(path: Path) -> None:
    leftover = path.with_name(f".{path.name}.aiopqr-abc")
    leftover.write_text("half")
    store = FileStore(path)
    await store.stage(await store.read(), NEW)
    assert os.listdir(path.parent) == [path.name]


async def test_file_and_folder_are_synced_before_a_change_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def record_replace(source: str, target: str) -> None:
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    store = FileStore(path)
    await store.stage(await store.read(), NEW)
    assert steps == ["file", "replace", "folder"]


async def test_readers_never_see_a_half_written_file(path: Path) -> None:
    store, source = FileStore(path), FileSource(path)
    done = asyncio.Event()

    async def read_on() -> int:
        reads = 0
        while not done.is_set():
            pair = await source.fetch()  # raises for half a file
            assert pair.even == Credential("app_even", "even-1")
            reads += 1
        return reads

    reader = asyncio.create_task(read_on())
    secret = await store.read()
    for number in range(20):
        secret = await store.stage(secret, Credential("app_odd", f"odd-{number}"))
        secret = await store.promote(secret, changed_at=NOON)
    done.set()
    assert await reader > 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"odd_username": "a"}', "\xff", '{"odd_password": "s3cret"}'])
async def test_a_file_that_is_no_secret_is_told_by_path_and_never_by_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pair.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=r"pair\.json: ") as caught:
        await FileStore(path).read()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        FileStore.read,
        FileStore.check_writable,
        lambda store: store.create(CredentialPair(NEW, Credential("app_even", "even-1")), changed_at=NOON),
    ],
)
async def test_symlinks_in_a_loop_are_a_store_error_and_stay(
    tmp_path: Path, call: Callable[[FileStore], Awaitable[object]]
) -> None:
    loop = tmp_path / "a"
    loop.symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StoreError, match=r"/a(: Too many| cannot be written| exists)"):
        await call(FileStore(loop))
    assert sorted(link.name for link in tmp_path.iterdir() if link.is_symlink()) == ["a", "b"]


async def test_a_missing_file_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        await FileStore(tmp_path / "none.json").read()


async def test_nothing_of_a_stored_secret_prints_a_password_or_another_key(path: Path) -> None:
    secret = await FileStore(path).read()
    assert "odd-1" not in repr(secret)
    assert "postgres" not in repr(secret)
    assert secret.revision not in repr(secret)


async def _change(store: FileStore, secret: StoredSecret, change: str) -> StoredSecret:
    if change == "stage":
        return await store.stage(secret, NEW)
    if change == "promote":
        return await store.promote(secret, changed_at=NOON)
    return await store.abandon(secret)


def _refuse(*_: object) -> None:
    raise PermissionError(28, "No space left on device")


async def test_a_file_that_cannot_be_replaced_is_found_before_anything_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(path)
    await store.check_writable()
    assert os.listdir(path.parent) == ["pair.json"]

    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    with pytest.raises(StoreError, match=r"Read-only file system.*nothing was changed. A mounted Secret is read-only"):
        await store.check_writable()
