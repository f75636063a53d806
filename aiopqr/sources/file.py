"""Credentials in a mounted file or folder, as written by Kubernetes, Vault Agent or the rotator.

Changes are detected by content. Kubernetes replaces a mounted secret by swapping a symlink and Vault Agent by renaming
a file, so an open handle or an inode number would miss them. If the file is half-written, missing or unreadable at that
moment, the fetch raises :class:`SourceError` and pools keep the pair they have. Kubernetes never updates a ``subPath``
mount, so do not use one.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .._threads import OwnThread
from ..credentials import SECRET_KEYS, CredentialPair
from ..errors import InvalidSecret, SourceError

_TRIES = 3  # how many times to read a folder that is replaced during each read


class FileSource:
    """Reads a JSON file, or a folder with one file per key. The keys are those of a pair or of a single account.

    The file is read every ``interval`` seconds (default 1) in a separate thread, and parsed when it has changed. To
    read another format, pass ``parse``: it gets the file's bytes, or a mapping of file names to texts for a folder, and
    returns a :class:`CredentialPair`.

    There is only one read at a time. While one hangs, each fetch waits for it, even if the path has been replaced.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        interval: float = 1.0,
        parse: Callable[[bytes | Mapping[str, str]], CredentialPair] = CredentialPair.from_secret,
    ) -> None:
        self._path = Path(path)
        self.interval = interval
        self._parse = parse
        self._thread = OwnThread("aiopqr-file")  # if a read hangs, nothing else has to wait
        self._seen: tuple[bytes, CredentialPair] | None = None

    def __repr__(self) -> str:
        return f"FileSource({str(self._path)!r})"

    async def fetch(self) -> CredentialPair:
        """Read the file. Raises :class:`SourceError` with the path if it cannot be read or used."""
        problem: str
        try:
            return await self._thread.run(self._read)
        except OSError as exc:
            problem = f"cannot read {self._path}: {exc.strerror or type(exc).__name__}"
        except InvalidSecret as exc:
            problem = f"{self._path}: {exc}"
        except UnicodeDecodeError:
            problem = f"{self._path}: not valid UTF-8"
        raise SourceError(problem)  # outside the handler, because the frames of the caught error hold the secret

    def _read(self) -> CredentialPair:
        content = self._read_folder() if self._path.is_dir() else self._path.read_bytes()
        digest = hashlib.sha256(repr(content).encode()).digest()
        if self._seen is None or self._seen[0] != digest:
            self._seen = digest, self._parse(content)
        return self._seen[1]

    def _read_folder(self) -> Mapping[str, str]:
        """All values of one version of the folder, which may be replaced at any time by the swap of a symlink.

        The old version is removed soon after, and files that are already gone would look like keys that were never
        there. So what was read counts only if the same folder is still in place afterwards.
        """
        for _ in range(_TRIES):
            folder = self._resolved()
            values = self._values(folder)
            if self._resolved() == folder:
                return values
        raise OSError(errno.EBUSY, "the folder was replaced each time it was read")

    def _resolved(self) -> Path:
        """The folder without symlinks: the target of ``..data``, which Kubernetes swaps, or of the path itself."""
        data = self._path / "..data"
        return (data if data.exists() else self._path).resolve()

    def _values(self, folder: Path) -> Mapping[str, str]:
        # Unknown files are not read. Their names are only for an error message.
        is_own = self._parse == CredentialPair.from_secret
        names = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
        return {name: _read_value(folder / name) if name in SECRET_KEYS or not is_own else "" for name in names}


def _read_value(path: Path) -> str:
    return path.read_bytes().decode().removesuffix("\n").removesuffix("\r")
