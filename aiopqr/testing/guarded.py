"""A directory that is removed when our process ends. A server that runs in it is killed.

A shell waits for the end of a pipe that only our process holds open, so even SIGKILL leaves nothing behind.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
from pathlib import Path

from .binaries import RunAs, workspace

_GUARD = """
read -r _
if pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null); then
  kill -QUIT "$pid"
  while kill -0 "$pid"; do sleep 0.05; done
fi
rm -rf "$1"
"""


class GuardedDirectory:
    """A new directory that ``run_as`` owns, at :attr:`path`, until :meth:`remove` or the end of this process."""

    def __init__(self, run_as: RunAs) -> None:
        self.path: Path = workspace(run_as)
        self._creator = os.getpid()
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        atexit.register(self.remove)

    @property
    def is_ours(self) -> bool:
        """Whether this process created the directory. A forked child must not remove its parent's."""
        return self._creator == os.getpid()

    def remove(self) -> None:
        """Remove the directory. A second call does nothing, and neither does a call in a forked child."""
        if self.is_ours:
            atexit.unregister(self.remove)
            shutil.rmtree(self.path, ignore_errors=True)
            self._guard.kill()
            self._guard.communicate()
