"""The command line: ``aiopqr demo | check | rotate | setup``. A command is imported when it is asked for.

So ``aiopqr --help`` is quick, and a command whose optional dependency is missing harms no other.
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
    "demo": "Watch passwords change under load on a real Postgres, while nothing fails.",
    "check": "Check, before you go live, that an application's accounts and its database fit together.",
    "rotate": "Change the password of one account of a pair, without locking out any pool.",
    "setup": "Create the two accounts for an application's role, or repair them.",
}


def application(arguments: list[str]) -> typer.Typer:
    """The commands: the one that ``arguments`` ask for is real, the others are names with a line of help."""
    app = typer.Typer(
        help="Change the passwords of your Postgres accounts whenever you like; the services never notice.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # it shows a traceback's locals, which may hold a password
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def main(
        version: bool = typer.Option(
            False, "--version", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ) -> None:
        pass

    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, line in COMMANDS.items():
        if name == asked:
            command = load(name)
            app.command(name, short_help=line, help=_unfolded(command.__doc__ or ""))(command)
        else:
            app.command(name, help=line)(_placeholder)
    return app


def load(name: str) -> Callable[..., Any]:
    """The function of a command. Raises :class:`MissingExtra`, which says what to install."""
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
    """Run the command that ``arguments`` (without the program's name) ask for. Always ends by SystemExit."""
    try:
        application(arguments)(arguments, prog_name="aiopqr")
    except AiopqrError as exc:
        sys.exit(_failed(exc))


def _failed(exc: AiopqrError) -> int:
    typer.echo(f"aiopqr: {exc}", err=True)
    return 2


def _unfolded(text: str) -> str:
    """Paragraphs as single lines, for a terminal to fold at its own width; one that begins with a backspace stays."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs)


def _placeholder() -> None:
    """Never called: the command that is asked for is loaded."""


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"aiopqr {__version__}")
        raise typer.Exit
