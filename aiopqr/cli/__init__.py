"""The command line: ``aiopqr demo | check | rotate | setup``. Only the command that is called is imported.

That keeps ``aiopqr --help`` fast, and a missing optional dependency breaks only the command that needs it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from .. import __version__
from ..errors import AiopqrError, MissingExtra

try:
    import rich  # noqa: F401
    import typer
except ImportError as exc:
    raise MissingExtra("the command line", "cli") from exc

COMMANDS = {
    "demo": "Watch a pool survive password changes under load, on a real Postgres.",
    "check": "Before you go live, check that an application's accounts and database are set up correctly.",
    "rotate": "Change the password of one account without locking out any pool.",
    "setup": "Create or repair the two accounts of an application.",
}


def application(arguments: list[str]) -> typer.Typer:
    """Make the app. The command that ``arguments`` name is loaded; the others have only a name and a line of help."""
    app = typer.Typer(
        help="Change the passwords of your Postgres accounts at any time, without your services noticing.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # it shows a traceback's locals, which may hold a password
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def main(
        version: bool = typer.Option(
            False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ) -> None:
        pass

    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, line in COMMANDS.items():
        if name == chosen:
            command = load(name)
            app.command(name, short_help=line, help=_unfolded(command.__doc__ or ""))(command)
        else:
            app.command(name, help=line)(_placeholder)
    return app


def load(name: str) -> Callable[..., Any]:
    """Import a command's function. Raises :class:`MissingExtra`, which says what to install, if it needs more."""
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if missing.startswith("aiopqr"):
            raise AiopqrError(f"this installation of aiopqr {__version__} has no `aiopqr {name}`") from None
        raise MissingExtra(
            f"aiopqr {name} (module {missing!r} is missing)", "demo" if name == "demo" else "cli"
        ) from None
    function: Callable[..., Any] = getattr(module, name)
    return function


def run(arguments: list[str]) -> None:
    """Run the command that ``arguments`` (without the program's name) call. Always raises SystemExit."""
    try:
        application(arguments)(arguments, prog_name="aiopqr")
    except AiopqrError as exc:
        sys.exit(_failed(exc))


def _failed(exc: AiopqrError) -> int:
    typer.echo(f"aiopqr: {exc}", err=True)
    return 2


def _unfolded(text: str) -> str:
    """Put each paragraph on one line, which the terminal wraps, except for those that begin with a backspace."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs)


def _placeholder() -> None:
    """Never called, because the command that is called has been loaded."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aiopqr {__version__}")
        raise typer.Exit
