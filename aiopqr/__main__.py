"""``python -m aiopqr`` and the ``aiopqr`` command. It imports little, so that it can say what to install."""

from __future__ import annotations

import sys

from .errors import MissingExtra


def main() -> None:
    """Run the command line. Always raises SystemExit, with 2 if the ``cli`` extra is missing."""
    try:
        from .cli import run
    except MissingExtra as exc:
        print(f"aiopqr: {exc}", file=sys.stderr)
        sys.exit(2)
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
