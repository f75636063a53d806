"""Another Debian in a chroot, for its Pythons, Postgres and PgBouncer. Needs root, and installs debootstrap."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from .environments import TOP

_PACKAGES = "python3,python3-venv,python3-dev,make,git,ca-certificates,gcc,libc6-dev,postgresql,pgbouncer,procps"
_IF_IT_HAS_THEM = ("python3.15-venv", "python3.15-dev")
_OF_EXPERIMENTAL = "postgresql-19"  # which comes on top of sid
_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# How this machine reaches its mirrors: the chroot needs the same.
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", os.environ.get("SSL_CERT_FILE", ""))


def debian(suite: str) -> Path:
    """A chroot with that release and a :func:`clone_in` it of the committed HEAD. It is kept for the next time."""
    root = TOP / ".envs" / f"debian-{suite}"
    if not (root / "made").exists():
        _bootstrap(suite, root)
    for file in filter(os.path.isfile, _NETWORK):
        (root / file[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file[1:])
    shutil.rmtree(clone_in(root), ignore_errors=True)
    subprocess.run(["git", "clone", "-q", TOP, clone_in(root)], check=True)
    return root


def clone_in(root: Path) -> Path:
    return root / "srv" / TOP.name


def _bootstrap(suite: str, root: Path) -> None:
    if shutil.which("debootstrap") is None:
        subprocess.run(["apt-get", "-qq", "-y", "install", "debootstrap"], check=True)
    script = Path("/usr/share/debootstrap/scripts") / suite
    if not script.exists():
        script.symlink_to("sid")
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(exist_ok=True)
    mirror = [mirror_here()] if mirror_here() else []
    base = "sid" if suite == "experimental" else suite
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", base, root, *mirror]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for package in _IF_IT_HAS_THEM:
        _apt_get(root, "install", package)
    if suite == "experimental":
        _, mirror_there, *_ = (root / "etc/apt/sources.list").read_text().split()
        (root / "etc/apt/sources.list.d/experimental.list").write_text(f"deb {mirror_there} experimental main\n")
        _apt_get(root, "update")
        _apt_get(root, "-t", "experimental", "install", _OF_EXPERIMENTAL)
    (root / "made").touch()


def _apt_get(root: Path, *words: str) -> None:
    # An old snapshot of a mirror will do: only its packages matter.
    how = ["-qq", "-y", "--no-install-recommends", "-o", "Acquire::Check-Valid-Until=false"]
    command = ["chroot", root, "apt-get", *how, *words]
    subprocess.run(command, check=False, capture_output=True, env={"PATH": _PATH})


def mirror_here() -> str:
    """The first Debian mirror that this machine uses; empty if it uses none."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(file.read_text() for file in sources if file.exists())
    found = re.search(r"^(?:URIs:|deb) *(https?://\S*debian\S*)", text, flags=re.MULTILINE)
    return found[1] if found else ""


def command_in(root: Path, *command: str) -> list[str]:
    """What runs ``command`` in the clone. Its mounts end with it, so that deleting the folder does not delete /dev."""
    mount = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
    clone = Path("/") / clone_in(root).relative_to(root)
    there = ["env", "-C", str(clone), "-u", "PIP_FIND_LINKS", f"HOME={clone.parent}", f"PATH={_PATH}"]
    return ["unshare", "--mount", "sh", "-c", mount, str(root), *there, *command]
