"""The ``aiopqr demo`` command: its options, its exit codes, and where its results go."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Annotated

import asyncpg
import typer
from rich.console import Console

from ...errors import AiopqrError, ConfigurationError
from .picture import NoPicture, draw
from .pools import Options
from .result import DemoResult
from .run import Demo, perform
from .view import LineScreen, LiveScreen, show_result


def demo(
    seconds: Annotated[float, typer.Option(help="How long the load runs, in seconds.")] = 30.0,
    every: Annotated[float, typer.Option(help="Time between two password changes, in seconds.")] = 3.3,
    lifetime: Annotated[float, typer.Option(help="Age at which a connection is replaced, in seconds.")] = 2.0,
    workers: Annotated[int, typer.Option(min=1, help="Number of tasks that use the pool.")] = 20,
    connections: Annotated[int, typer.Option(min=1, help="Number of connections in the pool.")] = 10,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also run the load on asyncpg's own pool, which looks up its password for each connect."
        ),
    ] = False,
    single: Annotated[
        bool, typer.Option("--single", help="Use only one account, to see what that can and cannot do.")
    ] = False,
    dsn: Annotated[
        str | None,
        typer.Option(
            help="An existing server and its admin role: postgresql://admin@host/postgres. The password comes from "
            "AIOPQR_ADMIN_PASSWORD, PGPASSWORD or the password file. The demo creates databases and accounts there, "
            "and drops them at the end. Default: start a temporary server."
        ),
    ] = None,
    picture: Annotated[Path, typer.Option(help="File for the picture of the latencies (.png or .svg).")] = Path(
        "demo-latency.png"
    ),
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of a live display.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output, the rest on standard error.")
    ] = False,
) -> None:
    """Watch a pool survive password changes under load, on a real Postgres.

    The demo starts a Postgres server, runs queries through a pool, and changes the passwords of the two accounts in
    turn, and once both at the same time. At the end it prints the result.

    Exit codes: 0 no operation failed; 1 some failed; 2 the demo could not run; 130 interrupted.
    """
    console = Console(stderr=as_json)
    try:
        options = _checked(seconds, every, lifetime, workers, connections, dsn, compare, picture)
        options = dataclasses.replace(options, single=single)
        result = asyncio.run(run_demo(options, console, picture, plain=plain))
    except (AiopqrError, asyncpg.PostgresError, OSError) as exc:
        if isinstance(exc, BrokenPipeError):
            raise
        typer.echo(f"aiopqr demo: {' '.join(str(exc).split())}", err=True)
        raise typer.Exit(2) from None
    if result is None:
        typer.echo("aiopqr demo: interrupted before a password was changed", err=True)
        raise typer.Exit(130)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    raise typer.Exit(result.exit_code)


async def run_demo(
    options: Options, console: Console, picture: Path | None, *, plain: bool = False
) -> DemoResult | None:
    """Run the demo, and show and draw its results. Ctrl-C, SIGTERM and SIGHUP end it early, but cleanly."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    run: Demo | None
    try:
        with LineScreen(console) if plain or not console.is_terminal else LiveScreen(console) as screen:
            run, result = await perform(options, screen, stop)
    except* asyncpg.InsufficientPrivilegeError as group:
        problem = f"the role of --dsn must be a superuser, or have CREATEDB and CREATEROLE: {_first(group)}"
        raise ConfigurationError(problem) from None
    except* (AiopqrError, asyncpg.PostgresError, OSError) as group:
        raise _first(group) from None
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
    if run is None or result is None:
        return None
    note = "no picture: there is too little to draw"
    if picture is not None and result.ours.operations:
        try:
            draw(run, picture)
        except NoPicture as exc:
            note = f"no picture: {exc}"
        else:
            result = dataclasses.replace(result, picture=str(picture))
            note = f"picture: {picture}"
    show_result(console, result)
    console.print(note, highlight=False, markup=False, soft_wrap=True)
    return result


def _checked(
    seconds: float,
    every: float,
    lifetime: float,
    workers: int,
    connections: int,
    dsn: str | None,
    compare: bool,
    picture: Path,
) -> Options:
    for name, value, least in (("--seconds", seconds, 2.0), ("--every", every, 0.5), ("--lifetime", lifetime, 0.2)):
        if not math.isfinite(value) or value < least:
            raise ConfigurationError(f"{name} must be at least {least:g}")
    if every >= seconds:
        raise ConfigurationError("--every must be less than --seconds; otherwise no password would change")
    if not os.access(picture.absolute().parent, os.W_OK):
        raise ConfigurationError(f"--picture: the folder {picture.absolute().parent} is not writable")
    return Options(seconds, every, lifetime, workers, connections, dsn, compare)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
