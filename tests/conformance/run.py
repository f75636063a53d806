"""Runs the pool tests of the installed asyncpg with ``AlternatingPool`` in the place of ``asyncpg.Pool``.

They are asyncpg's: fetched with pip into ``.conformance/``, and not part of this repository. Postgres refuses to run
as root, so as root its programs are run by wrappers that become another user. ``--plain`` runs them on asyncpg's own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from aiopqr.testing import NotAvailable  # noqa: E402
from aiopqr.testing.binaries import Binaries, RunAs, copy_to, workspace  # noqa: E402

CACHE = ROOT / ".conformance"
HOW_MANY = {"0.32.0": 66}  # so that we notice if a test silently vanishes


def fetch(version: str) -> tarfile.TarFile:
    """asyncpg's source distribution, from the cache or from the package index."""
    archive = CACHE / f"asyncpg-{version}.tar.gz"
    if not archive.exists():
        options = ["--no-binary", "asyncpg", "--no-deps", "--dest", str(CACHE)]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, f"asyncpg=={version}"], check=True)
    return tarfile.open(archive)


def find_binaries(which: str | None) -> Binaries:
    """The system's Postgres, or else the embedded one."""
    for candidate in [which] if which else ["system", "embedded"]:
        try:
            return Binaries.find(candidate)
        except NotAvailable as exc:
            problem = exc
    raise problem


_WRAPPER = """\
#!{python} -IS
import os, sys
if "-D" in sys.argv[:-1]:
    data = sys.argv[sys.argv.index("-D") + 1]
    for path in [data, *(os.path.join(top, name) for top, folders, files in os.walk(data) for name in folders + files)]:
        os.chown(path, {uid}, {gid}, follow_symlinks=False)
os.setgroups([])
os.setgid({gid})
os.setuid({uid})
os.execv({program!r}, [{program!r}, *sys.argv[1:]])
"""


def wrap(binaries: Binaries, place: Path, run_as: RunAs) -> Path:
    """A directory of programs that do what those of ``binaries`` do, as ``run_as``."""
    directory = place / "bin"
    directory.mkdir()
    for program in ("initdb", "pg_basebackup", "pg_ctl", "postgres"):
        real = binaries[program]
        text = _WRAPPER.format(python=sys.executable, uid=run_as.uid, gid=run_as.gid, program=real)
        (directory / program).write_text(text)
        (directory / program).chmod(0o755)
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true", help="run them on asyncpg's own pool")
    parser.add_argument("--session-reset", default="full", choices=["full", "deferred"], help="of aiopqr's pool")
    parser.add_argument("--postgres", help="system, embedded, embedded18 or a directory with initdb")
    parser.add_argument("names", nargs="*", help="parts of the names of the tests to run (default: all)")
    options = parser.parse_args()
    version = importlib.metadata.version("asyncpg")
    run_as = RunAs.choose()
    place = workspace(run_as)
    try:
        binaries = find_binaries(options.postgres)
        if not run_as.can_run(binaries):
            binaries = copy_to(binaries, place / "postgres", run_as)
        with fetch(version) as archive:
            member = archive.extractfile(f"asyncpg-{version}/tests/test_pool.py")
            assert member is not None
            (place / "test_pool.py").write_bytes(member.read())
        shutil.copy(Path(__file__).with_name("shim.py"), place)
        kind = "asyncpg" if options.plain else "aiopqr"
        print(
            f"asyncpg {version}'s pool tests on {kind}'s ({options.session_reset} reset), Postgres {binaries.version}",
            flush=True,
        )
        command = [sys.executable, str(place / "shim.py"), str(place), kind, options.session_reset, *options.names]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        environ |= {
            "PGINSTALLATION": str(wrap(binaries, place, run_as) if run_as.is_other else binaries.bindir),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(place),
        }
        run = subprocess.Popen(
            command, cwd=place, env=environ, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
        )
        assert run.stdout is not None
        summary = ""
        try:
            for line in run.stdout:
                print(line, end="", flush=True)
                summary = line
            code = run.wait()
        finally:
            run.kill()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    expected = HOW_MANY.get(version)
    if code == 0 and expected and not options.names and not summary.startswith(f"{expected} run"):
        print(f"asyncpg {version} has {expected} tests")
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
