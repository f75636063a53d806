"""The ``aiopqr check`` command: its options, where it gets the pair, and how it prints the findings."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..._login import place_of
from ..._trust import Channel
from ...credentials import CredentialPair, Parity
from ...errors import AiopqrError, SourceError, describe
from ...options import service_section
from ...rotation.errors import StoreError
from ...rotation.gates import Rules
from ...rotation.stores.file import FileStore
from ...sources import as_source
from ..ops_input import VAULT_HELP, dsn_without_password, exactly_one, from_aws, imported, run, vault_place
from .facts import look
from .findings import file_findings, findings
from .timing import period_of
from .values import CheckFacts, Finding, Level, Schedule
from .vault import looking

EXIT_CODES = {Level.OK: 0, Level.NOTE: 0, Level.WARNING: 3, Level.PROBLEM: 4}
_STYLES = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def check(
    dsn: Annotated[str, typer.Option(help="The application's DSN, without user and password.")],
    file: Annotated[Path | None, typer.Option(help="JSON file that contains the pair.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="The application's own source, as module:name of an async callable or a source object."),
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="Name or ARN of the secret in AWS Secrets Manager that contains the pair.")
    ] = None,
    vault: Annotated[str | None, typer.Option(help=VAULT_HELP)] = None,
    vault_roles: Annotated[
        tuple[str, str] | None, typer.Option(help="Names of two static roles in Vault: first odd, then even.")
    ] = None,
    vault_dynamic: Annotated[str | None, typer.Option(help="Name of a dynamic role in Vault.")] = None,
    vault_mount: Annotated[str, typer.Option(help="Mount path of the database engine with these roles.")] = "database",
    region: Annotated[str | None, typer.Option(help="AWS region of the secret.")] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="URL to use for AWS Secrets Manager instead of the region's.")
    ] = None,
    max_lifetime: Annotated[
        float, typer.Option(min=0, help="The longest max_lifetime of any pool, in seconds.")
    ] = 1800,
    refresh_interval: Annotated[
        float, typer.Option(min=0, help="The longest refresh interval of any pool, in seconds.")
    ] = 60,
    max_size: Annotated[int, typer.Option(min=1, help="The max_size of the largest pool.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on standard output.")] = False,
) -> None:
    """Before you go live, check that an application's accounts and database are set up correctly.

    Say where the pair is with one of --file, --source, --secret, --vault, --vault-roles and --vault-dynamic. The
    command logs in with both accounts as an application would, compares what they may do, and says what to do about
    each finding. It changes nothing.

    Exit codes: 0 everything is fine; 2 the check could not run; 3 there are warnings; 4 there are problems.
    """
    exactly_one(
        file=file, source=source, secret=secret, vault=vault, vault_roles=vault_roles, vault_dynamic=vault_dynamic
    )
    dsn = dsn_without_password(dsn, "--dsn", user_allowed=False)
    rules = Rules(max_lifetime, refresh_interval)

    async def main(stack: contextlib.AsyncExitStack) -> int:
        more: tuple[Finding, ...] = ()
        times: Mapping[Parity, datetime | None] = {}
        schedule: Schedule | None = None
        if file is not None:
            stored = await FileStore(file).read()
            pair, times = stored.pair, {parity: stored.changed_at(parity) for parity in Parity}
            about = file.stat()
            more = tuple(file_findings(about.st_mode, about.st_nlink))
        elif secret is not None:
            pair, times, schedule = await _from_aws(secret, region, endpoint_url)
        elif vault is not None or vault_roles is not None or vault_dynamic is not None:
            kv = vault_place(vault) if vault is not None else None
            looked = await stack.enter_async_context(looking(kv, vault_roles, vault_dynamic, vault_mount, rules))
            pair, times, more = looked.pair, looked.times, looked.findings
        else:
            pair = await _from_source(source or "")
        accounts = {
            parity: await look(dsn, account, other.username if (other := pair[parity.other]) else "")
            for parity in Parity
            if (account := pair[parity])
        }
        problems = [account.problem for account in accounts.values() if account.is_untried]
        if problems and len(problems) == len(accounts):
            down = all(account.unreachable for account in accounts.values())
            why = "the applications' path is down: nothing answered at" if down else "no account could log in at"
            raise AiopqrError(f"the check could not run: {why} {place_of(dsn) or 'the given address'}: {problems[0]}")
        by_socket = any(account.asked.endswith(Channel.UNIX) for account in accounts.values())
        facts = CheckFacts(pair, accounts, sslmode_of(dsn, by_socket=by_socket), rules, max_size, times, schedule)
        found = [*findings(facts), *more]
        _print_json(found) if as_json else _print_table(found)
        return EXIT_CODES[max(finding.level for finding in found)]

    async def stacked() -> int:
        async with contextlib.AsyncExitStack() as stack:
            return await main(stack)

    run(stacked(), "check")


async def _from_source(place: str) -> CredentialPair:
    """Fetch the pair from the user's own source, which may raise anything."""
    value = imported(place)
    problem = ""
    try:
        source = as_source(value() if isinstance(value, type) else value)
        try:
            pair: Any = await source.fetch()
        finally:
            if closing := getattr(source, "aclose", None):
                await closing()
    except AiopqrError:
        raise
    except Exception as exc:
        problem = describe(exc)
    else:
        if isinstance(pair, CredentialPair):
            return pair
        problem = f"it returned a {type(pair).__name__}, not a CredentialPair"
    raise SourceError(f"--source {place}: {problem}")


async def _from_aws(
    secret: str, region: str | None, endpoint_url: str | None
) -> tuple[CredentialPair, Mapping[Parity, datetime | None], Schedule]:
    place: dict[str, Any] = {"region_name": region, "endpoint_url": endpoint_url}
    source = from_aws("aiopqr.sources.aws.source", "SecretsManagerSource")(secret, start_spread=0.0, **place)
    try:
        pair = await source.fetch()
    finally:
        await source.aclose()
    client = from_aws("aiopqr.sources.aws.client", "SecretsManagerClient")(**place)
    try:
        async with client.alone():
            schedule = schedule_of(await client.request("describe_secret", secret))
    finally:
        await client.aclose()
    times: Mapping[Parity, datetime | None] = {}
    async with from_aws("aiopqr.rotation.stores.aws", "SecretsManagerStore")(secret, **place) as store:
        with contextlib.suppress(StoreError):  # a secret in another layout does not record times
            stored = await store.read()
            times = {parity: stored.changed_at(parity) for parity in Parity}
    return pair, times, schedule


def schedule_of(description: Mapping[str, Any]) -> Schedule:
    """Read the rotation schedule from the answer to DescribeSecret."""
    rules = description.get("RotationRules") or {}
    days = rules.get("AutomaticallyAfterDays")
    rule = rules.get("ScheduleExpression") or (f"every {days} days" if days else None)
    period = timedelta(days=days) if days else period_of(rule or "")
    last, following = (
        time.astimezone(UTC) if (time := description.get(key)) else None
        for key in ("LastRotatedDate", "NextRotationDate")
    )
    return Schedule(bool(description.get("RotationEnabled")), last, following, rule, period)


def sslmode_of(dsn: str, *, by_socket: bool) -> str | None:
    """The sslmode that asyncpg takes from a DSN, the service file or the environment; None for a Unix socket.

    If no host is named, asyncpg looks for sockets and then tries localhost. ``by_socket`` says that it found one.
    """
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    service = service_section(query, {})
    host = unquote(parts.netloc) or query.get("host") or service.get("host") or os.environ.get("PGHOST", "")
    if host.startswith("/") or (by_socket and not host):
        return None
    named = query.get("sslmode") or query.get("ssl") or service.get("sslmode")
    return named or os.environ.get("PGSSLMODE") or "prefer"


def _print_table(found: list[Finding]) -> None:
    console = Console()
    if not console.is_terminal:  # a log or a pipe has no width to wrap at
        _print_lines(found)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        style = _STYLES[finding.level]
        text = Text(finding.text)
        if finding.advice:
            text.append(f"\n→ {finding.advice}", style="dim")
        table.add_row(Text(finding.level.name.lower(), style=style), Text(finding.name), text)
    with contextlib.suppress(BrokenPipeError):
        console.print(table)


def _print_lines(found: list[Finding]) -> None:
    names = max(len(finding.name) for finding in found)
    levels = max(len(level.name) for level in Level)
    with contextlib.suppress(BrokenPipeError):
        for finding in found:
            print(f"{finding.level.name.lower():{levels}}  {finding.name:{names}}  {finding.text}")
            if finding.advice:
                print(f"{'':{levels}}  {'':{names}}  → {finding.advice}")


def _print_json(found: list[Finding]) -> None:
    findings = [asdict(finding) | {"level": finding.level.name.lower()} for finding in found]
    print(json.dumps({"worst": max(finding.level for finding in found).name.lower(), "findings": findings}, indent=2))
