"""The files of a Postgres server: its data directory, its configuration, and the file that shows whether it is ready.

initdb takes half a second, so it runs once per process and version. Every server starts from a copy of the result.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..credentials import Secret
from .binaries import Binaries, RunAs, copy_to
from .errors import NotAvailable, ServerError
from .guarded import GuardedDirectory

#: The superuser's password of all servers of this process.
ADMIN_PASSWORD = Secret(secrets.token_urlsafe(24))

# The data is deleted when the test ends, so it need not survive a power failure. It does survive a server crash.
_FAST = {
    "fsync": False,
    "full_page_writes": False,
    "shared_buffers": "16MB",
    "huge_pages": False,
    "jit": False,
    "max_wal_senders": 4,
    "password_encryption": "scram-sha-256",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "lc_messages": "C",
}
_SCRAM_FOR_ALL = ("local all all scram-sha-256", "host all all all scram-sha-256")


def create(binaries: Binaries, data: Path, run_as: RunAs, admin: str) -> None:
    """Make a fresh data directory at ``data``."""
    shutil.copytree(_template(binaries, run_as, admin), data, symlinks=True)
    data.chmod(0o700)
    run_as.own(data)


def write_configuration(
    data: Path, run_as: RunAs, settings: Mapping[str, object], admin: str, hba: Sequence[str] | None
) -> None:
    """Write ``postgresql.conf`` and ``pg_hba.conf``. ``admin`` can always log in, whatever ``hba`` says."""
    lines = [f"{name} = {setting(value)}\n" for name, value in {**_FAST, **settings}.items()]
    for name, text in (("postgresql.conf", "".join(lines)), ("pg_hba.conf", hba_text(admin, hba))):
        new = data / f"{name}.new"
        new.write_text(text)
        run_as.own(new)
        os.replace(new, data / name)


def hba_text(admin: str, lines: Sequence[str] | None) -> str:
    """A ``pg_hba.conf`` made of ``lines`` (None: SCRAM for everyone) that always lets ``admin`` log in."""
    entrance = [f'local all "{admin}" scram-sha-256']
    entrance += [f'host {database} "{admin}" all scram-sha-256' for database in ("all", "replication")]
    return "".join(f"{line}\n" for line in (*entrance, *(_SCRAM_FOR_ALL if lines is None else lines)))


def is_ready(postmaster_pid: Path) -> bool:
    """Whether the server that wrote this file accepts logins: its eighth line says so (see Postgres' pidfile.h)."""
    try:
        lines = postmaster_pid.read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[7].strip() == "ready"


@functools.cache
def reachable(binaries: Binaries, run_as: RunAs) -> Binaries:
    """``binaries``, or a copy of them if ``run_as`` cannot read them, for example in a virtualenv below /root."""
    if run_as.can_run(binaries):
        return binaries
    copy = copy_to(binaries, GuardedDirectory(run_as).path, run_as)
    if not run_as.can_run(copy):
        raise NotAvailable(
            f"Postgres does not run as root, and user {run_as.name} can run neither {binaries['postgres']} nor a copy "
            f"in {tempfile.gettempdir()} (mounted noexec?): run the tests as an ordinary user"
        )
    return copy


@functools.cache
def _template(binaries: Binaries, run_as: RunAs, admin: str) -> Path:
    directory = GuardedDirectory(run_as).path
    password_file = directory / "password"
    password_file.touch(0o600)
    password_file.write_text(ADMIN_PASSWORD.reveal() + "\n")
    run_as.own(password_file)
    command = [binaries["initdb"], "-D", str(directory / "data"), "-U", admin, f"--pwfile={password_file}"]
    command += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1", "--no-instructions"]
    made = subprocess.run(
        command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True, **run_as.popen()
    )
    password_file.unlink()
    if made.returncode != 0:
        raise ServerError(f"initdb of Postgres {binaries.version} failed as {run_as.name}:\n{made.stdout[-3000:]}")
    return directory / "data"


def setting(value: object) -> str:
    """``value`` in the syntax of ``postgresql.conf`` and ``ALTER SYSTEM``."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace("'", "''")
    return f"'{text}'"
