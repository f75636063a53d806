"""A JSON file as a secret store: replaced atomically, durable when a change returns, one writer at a time.

A reader sees either the old or the new content, never a mixture. The file keeps its owner, its mode and its path
(symlinks still point to it), so everyone who could read it still can. Writers exclude each other with a lock on the
folder, held for one change only. If a writer is killed, its lock is released.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import glob
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from ..._threads import OwnThread
from ...credentials import CredentialPair, parse_secret
from ...errors import InvalidSecret, without_frames
from ..errors import StoreConflict, StoreError
from .document import new_document, read_document
from .store import StoredSecret
from .whole import Change, WholeStore

_T = TypeVar("_T")
_LOCK_TIMEOUT = 10.0


class FileStore(WholeStore):
    """A secret store in a JSON file with gopqr's five keys. :class:`aiopqr.sources.FileSource` reads the file.

    Rotators on the same machine exclude each other. Each change runs in a thread. If it is cancelled, it finishes
    before the cancellation is raised.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._thread = OwnThread("aiopqr-store")

    def __repr__(self) -> str:
        return f"FileStore({str(self._path)!r})"

    def __str__(self) -> str:
        return str(self._path)

    async def read(self) -> StoredSecret:
        """See :meth:`SecretStore.read`. Raises :class:`StoreError` if the file cannot be read or used."""
        return await self._in_thread(lambda: self._load(self._target())[1])

    async def check_writable(self) -> None:
        """Raise :class:`StoreError` if the file cannot be replaced. Makes and removes another file in its folder."""
        await self._in_thread(self._try_writing)

    async def create(self, pair: CredentialPair, *, changed_at: datetime) -> StoredSecret:
        """Create the file, readable by its owner only (mode 0600). Raises :class:`StoreConflict` if it exists.

        ``changed_at`` is when both accounts got their passwords.
        """
        return await self._in_thread(lambda: self._create(pair, changed_at))

    async def _change(self, secret: StoredSecret, change: Change) -> StoredSecret:
        return await self._in_thread(lambda: self._replace(secret.revision, change))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        job = self._thread.submit(work)
        try:
            await asyncio.wait({job})  # not shield(): since Python 3.14, it logs errors that come after a cancellation
            return job.result()
        except asyncio.CancelledError:
            await asyncio.wait({job})
            if not job.cancelled():
                job.exception()  # retrieve it, so that asyncio does not report it
            raise
        except OSError as exc:
            problem: Exception = StoreError(f"{self._path}: {exc.strerror or type(exc).__name__}")
        except UnicodeDecodeError:
            problem = StoreError(f"{self._path}: not valid UTF-8")
        except InvalidSecret as exc:
            problem = StoreError(f"{self._path}: {exc}")
        except StoreError as exc:
            problem = without_frames(exc)
        raise problem  # outside the handlers, because the frames of the caught error hold the secret

    def _target(self) -> Path:
        """The file that the symlinks lead to. If they form a loop, it is one of them, and opening it fails."""
        return Path(os.path.realpath(self._path))  # Path.resolve() raises RuntimeError for a loop before Python 3.13

    def _try_writing(self) -> None:
        path, problem = self._target(), ""
        try:
            with _locked(path):
                _clear_leftovers(path)
                handle, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
                try:
                    _keep_access(path, path.stat(), handle)
                finally:
                    os.close(handle)
                    os.unlink(name)
        except OSError as exc:
            problem = exc.strerror or type(exc).__name__
        if problem:
            raise StoreError(
                f"{self._path} cannot be written ({problem}), and nothing was changed. A mounted Secret is read-only: "
                "rotate the original instead"
            )

    def _replace(self, revision: str, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> StoredSecret:
        path = self._target()
        with _locked(path):
            content, current = self._load(path)
            if current.revision != revision:
                raise StoreConflict(f"{self._path} has changed since it was read")
            entries = parse_secret(content)
            indent = 2 if b"\n" in content.strip() else None
            new = (json.dumps(change(entries), indent=indent) + "\n").encode()
            parsed = _parse(new)
            _write(path, new, like=path.stat())
            return parsed

    def _create(self, pair: CredentialPair, changed_at: datetime) -> StoredSecret:
        path = self._target()
        new = (json.dumps(new_document(pair, changed_at), indent=2) + "\n").encode()
        with _locked(path):
            if os.path.lexists(path):
                raise StoreConflict(f"{self._path} exists")
            _write(path, new, like=None)
        return _parse(new)

    @staticmethod
    def _load(path: Path) -> tuple[bytes, StoredSecret]:
        content = path.read_bytes()
        return content, _parse(content)


def _parse(content: bytes) -> StoredSecret:
    return read_document(parse_secret(content), hashlib.sha256(content).hexdigest())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises :class:`StoreError` if another writer holds it for too long."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(f"{path.parent} has been locked for {_LOCK_TIMEOUT:.0f} s") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(folder)


def _write(path: Path, content: bytes, *, like: os.stat_result | None) -> None:
    """Replace the content of ``path`` atomically and durably, keeping its owner, mode and attributes."""
    _clear_leftovers(path)
    handle, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)  # mode 0600
    try:
        with open(handle, "wb") as file:
            if like is not None:
                _keep_access(path, like, file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _prefix(path: Path) -> str:
    return f".{path.name}.aiopqr-"


def _clear_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f"{glob.escape(_prefix(path))}*"):  # from killed writers, since we hold the lock
        leftover.unlink()


def _keep_access(path: Path, like: os.stat_result, handle: int) -> None:
    """Give the new file the old one's owner, mode and access lists, so that the same users can read it."""
    own = os.fstat(handle)
    if (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid):
        try:
            os.fchown(handle, like.st_uid, like.st_gid)
        except PermissionError:
            problem = f"belongs to {like.st_uid}:{like.st_gid}, which this user cannot give a new file to"
            raise StoreError(f"{path} {problem}; run as its owner") from None
    os.fchmod(handle, stat.S_IMODE(like.st_mode))
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):  # a file system without extended attributes
            for name in os.listxattr(path):
                with contextlib.suppress(OSError):  # an attribute that only the system can set
                    os.setxattr(handle, name, os.getxattr(path, name))
