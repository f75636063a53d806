"""What ``aiopqr check`` finds, judged from facts: each finding says what is so, and what to do. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..credentials import CredentialPair, Parity
from ..rotation.gates import Rules
from ..rotation.words import duration, moment
from .check_facts import Account

_SHOWN = 5


class Level(enum.IntEnum):
    """How bad it is. The worst one decides the exit code."""

    OK = 0
    NOTE = 1
    WARNING = 2
    PROBLEM = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what is so, and what to do about it. No secret is in it."""

    level: Level
    name: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the store itself says of rotations: AWS's rules. ``period`` is the shortest time between two."""

    enabled: bool
    last: datetime | None = None
    next: datetime | None = None
    rule: str | None = None
    period: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is judged. ``changed_at`` has the accounts' change times as far as they are known."""

    pair: CredentialPair
    accounts: Mapping[Parity, Account]
    sslmode: str | None
    rules: Rules
    max_size: int
    changed_at: Mapping[Parity, datetime | None]
    schedule: Schedule | None = None


def findings(facts: Facts) -> Iterator[Finding]:
    """Everything that was looked at, in the order in which it matters."""
    yield from _pair(facts)
    yield from _logins(facts)
    yield from _tls(facts)
    accounts = [account for account in facts.accounts.values() if account.logs_in]
    for account in accounts:
        yield from _account(account, facts)
    if len(accounts) == 2:
        yield from _equality(*accounts)
    if accounts:
        yield from _authentication(accounts)
        yield from _proxy(accounts)
    yield from _times(facts)
    yield from _next_rotation(facts)
    if facts.schedule is not None:
        yield from _schedule(facts.schedule, facts.rules)


def _pair(facts: Facts) -> Iterator[Finding]:
    missing, pending = facts.pair.missing, facts.pair.pending
    if facts.pair.is_single:
        text = "one account: while its password changes, connects wait until the store has the new one"
        advice = "a second account removes that wait: create it with `aiopqr setup`; no code has to change"
        yield Finding(Level.NOTE, "accounts", text, advice)
        for account in facts.pair.credentials():
            if account.expires_at:
                text = f"the password of {account.username!r} is good until {account.expires_at:%Y-%m-%d %H:%M:%S %Z}"
                yield Finding(Level.OK, "expiry", text)
    elif missing:
        text = f"the secret has no {missing} account: while the other one's password changes, nobody can connect"
        yield Finding(Level.PROBLEM, "pair", text, "create both accounts (`aiopqr setup`) and store both")
    elif pending:
        text = f"a new password of {pending.username!r} is staged: a rotation is running, or was interrupted"
        if facts.pair.pending_since:
            text += (
                f"; it was staged at {moment(facts.pair.pending_since)}, and pools step aside from the account for at "
                "most 15 minutes"
            )
        yield Finding(Level.WARNING, "pair", text, "if no rotation is running, finish this one with `aiopqr rotate`")
    else:
        yield Finding(Level.OK, "pair", "both accounts are in the secret")


def _logins(facts: Facts) -> Iterator[Finding]:
    for parity, account in facts.accounts.items():
        name = f"{parity} logs in"
        if account.logs_in:
            yield Finding(Level.OK, name, account.username)
            continue
        why, advice = _why_not(parity, facts.accounts.get(parity.other))
        if account.verdict is None or not account.verdict.blames_account:
            advice = "check the DSN, the network and pg_hba.conf: the password is not to blame"
        yield Finding(Level.PROBLEM, name, f"{account.username!r} does not: {account.problem}{why}", advice)


def _why_not(parity: Parity, other: Account | None) -> tuple[str, str]:
    """Why an account does not log in, as far as the other one sees it, and what to do."""
    repair = f"`aiopqr rotate --account {parity} --force-mismatch` sets a new password, in the database and the store"
    if other is None or not other.logs_in:
        return "", f"find out why in the server's log; {repair}"
    if other.other is None:
        advice = "check the name in the secret; or drop the other account, remove the secret, and run `aiopqr setup`"
        return "; no role has this name", advice
    end, now = other.other["valid_until"], other.other["now"]
    if end is not None and end <= now:
        return f"; its VALID UNTIL passed at {moment(end)}", f"`aiopqr rotate --account {parity}` renews it"
    if not other.other["can_login"]:
        return "; the role is NOLOGIN", "ALTER ROLE … LOGIN (`aiopqr setup` does this)"
    return "; the role may log in, so the stored password is not the one in the database", repair


def _tls(facts: Facts) -> Iterator[Finding]:
    mode = facts.sslmode
    if mode is None:
        yield Finding(Level.OK, "TLS", "not needed on a Unix socket")
    elif mode in ("prefer", "allow"):
        text = f"sslmode={mode}: the server is not verified, and a refused login is repeated with or without TLS"
        yield Finding(Level.WARNING, "TLS", text, "use sslmode=verify-full, or sslmode=disable if you do not want TLS")
    elif mode == "disable":
        text = "sslmode=disable: anyone on the network can read queries and data"
        yield Finding(Level.NOTE, "TLS", text, "use sslmode=verify-full, unless the server is on this machine")
    elif mode in ("require", "verify-ca"):
        text = f"sslmode={mode}: encrypted, but the server's name is not verified"
        yield Finding(Level.NOTE, "TLS", text, "use sslmode=verify-full")
    else:
        yield Finding(Level.OK, "TLS", f"sslmode={mode}")


def _account(account: Account, facts: Facts) -> Iterator[Finding]:
    role, name = account.role, account.username
    if role["session_user"] != name:
        text = f"the server says that {name!r} is {role['session_user']!r}"
        advice = "a proxy maps users: let it keep the two accounts apart"
        yield Finding(Level.PROBLEM, "identity", text, advice)
    if role["superuser"]:
        advice = "use an ordinary role: whoever finds a superuser's password controls the server"
        yield Finding(Level.PROBLEM, "superuser", f"{name!r} is a superuser", advice)
    powers = [power for power in ("createrole", "replication", "bypassrls") if role[power]]
    if powers and not role["superuser"]:
        text = f"{name!r} has {', '.join(powers).upper()}"
        yield Finding(Level.WARNING, "powers", text, "revoke what the application does not need")
    for power in account.powers:
        level = Level.PROBLEM if power["superuser"] or power["bypassrls"] else Level.WARNING
        names = "superuser", "bypassrls", "createrole", "replication"
        may = ", ".join(name.upper() for name in names if power[name])
        text = (
            f"{name!r} is a member of {power['rolname']!r}, which has {may}, so the application effectively has it too"
        )
        yield Finding(level, "powers", text, "give the application its own owner role, without such powers")
    if account.valid_until:
        # Each account is changed by every second rotation only.
        soon = role["now"] + timedelta(seconds=2 * facts.rules.spacing) if "now" in role else None
        level = Level.PROBLEM if soon is None or account.valid_until < soon else Level.WARNING
        advice = "each rotation of the account renews it (`aiopqr rotate --valid-for`); rotate both before that"
        text = f"{name!r} cannot log in after {moment(account.valid_until)}"
        yield Finding(level, "VALID UNTIL", text, advice)
    # Each account alone, since while the other is refused it carries all; one more for a replacement.
    needed = facts.max_size + 1
    for whose, limit in ((f"{name!r}", role["connection_limit"]), ("the database", role["database_limit"])):
        if 0 <= limit < needed:
            text = f"{whose} may have {limit} connections, but one pool of {facts.max_size} needs up to {needed}"
            yield Finding(Level.PROBLEM, "connection limit", text, "raise it to (max_size + 1) times the instances")
        elif limit >= 0:
            text = f"{whose} may have {limit} connections, enough for {limit // needed} pools of {facts.max_size}"
            yield Finding(Level.NOTE, "connection limit", text, "count your instances: each needs max_size + 1")


def _equality(odd: Account, even: Account) -> Iterator[Finding]:
    yield from _acting(odd, even)
    for name, mine, theirs, advice in (
        ("memberships", odd.memberships, even.memberships, "grant the same roles to both"),
        (
            "privileges",
            odd.privileges,
            even.privileges,
            "grant to the role that both are members of, not to one account",
        ),
        ("default privileges", odd.default_privileges, even.default_privileges, "let both act as one owner role"),
        (
            "settings",
            _lines(odd.settings),
            _lines(even.settings),
            "`aiopqr setup` gives both the owner role's settings",
        ),
    ):
        differ = [f"only {odd.username!r}: {item}" for item in sorted(mine - theirs)]
        differ += [f"only {even.username!r}: {item}" for item in sorted(theirs - mine)]
        if differ:
            more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
            yield Finding(Level.PROBLEM, name, "; ".join(differ[:_SHOWN]) + more, advice)
        else:
            yield Finding(Level.OK, name, f"equal ({len(mine)})")
    if odd.role["connection_limit"] != even.role["connection_limit"]:
        text = f"{odd.role['connection_limit']} and {even.role['connection_limit']}"
        yield Finding(Level.WARNING, "connection limits differ", text, "give both accounts the same limit")


def _acting(odd: Account, even: Account) -> Iterator[Finding]:
    roles = {account.role["current_user"] for account in (odd, even)}
    if len(roles) == 1:
        yield Finding(Level.OK, "ownership", f"what either creates belongs to {roles.pop()!r}")
    else:
        text = "each account owns what it creates, and the other one cannot alter or drop it"
        yield Finding(Level.WARNING, "ownership", text, "let both act as one owner role: `aiopqr setup` does this")
    for account in (odd, even):
        owned = account.role["owned"]
        if owned:
            text = f"{account.username!r} itself owns {owned} objects"
            yield Finding(Level.WARNING, "ownership", text, f"REASSIGN OWNED BY {account.username} TO the owner role")


def _lines(settings: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"{name} = {value}" for name, value in settings.items())


def _authentication(accounts: list[Account]) -> Iterator[Finding]:
    methods = {account.authentication for account in accounts}
    asked = " and ".join(sorted({account.asked for account in accounts if account.asked}))
    for method in sorted(methods, key=str):
        if method is None:
            text = "servers before Postgres 16 do not report the method of a login"
            text += f"; this one asked for {asked}" if asked else ""
            yield Finding(Level.NOTE, "authentication", text, "make sure that pg_hba.conf says scram-sha-256")
        elif method == "scram-sha-256":
            yield Finding(Level.OK, "authentication", f"SCRAM-SHA-256 (the server asked for {asked or 'it'})")
        elif method == "md5":
            text = "pg_hba.conf says md5: the server uses SCRAM if it has a SCRAM verifier, and MD5 otherwise"
            advice = "rotate each account once, which stores verifiers; then write scram-sha-256 in pg_hba.conf"
            yield Finding(Level.WARNING, "authentication", text, advice)
        elif not method:
            text = "the server asks for no password (trust), so a login does not test the stored one"
            yield Finding(Level.PROBLEM, "authentication", text, "write scram-sha-256 in pg_hba.conf")
        else:
            text = f"the server authenticates with {method}, so ALTER ROLE does not change the password that counts"
            yield Finding(Level.WARNING, "authentication", text, "change passwords where that method keeps them")


def _proxy(accounts: list[Account]) -> Iterator[Finding]:
    if not any(account.proxied for account in accounts):
        yield Finding(Level.OK, "proxy", "none that pools connections")
        return
    text = (
        "there is a pooling proxy, such as PgBouncer, in between: it must find out new passwords by itself, it keeps "
        "server connections that use old ones, and in transaction mode it must support prepared statements"
    )
    advice = (
        "use auth_query and auth_type=scram-sha-256, not a static userlist; set server_lifetime below max_lifetime; "
        "set statement_cache_size=0 unless the proxy has max_prepared_statements; give `rotate --dsn` this same DSN"
    )
    yield Finding(Level.NOTE, "proxy", text, advice)


def _times(facts: Facts) -> Iterator[Finding]:
    """Whether a pair that a pool holds can become wholly stale: both accounts changed within its horizon."""
    if facts.pair.is_single:
        return
    rules, (odd, even) = facts.rules, (facts.changed_at.get(parity) for parity in Parity)
    horizon = rules.max_lifetime + rules.refresh_interval
    if rules.max_lifetime == 0:
        text = "max_lifetime is 0: connections that use an old password are never replaced"
        yield Finding(Level.WARNING, "rotation spacing", text, "give the pools a max_lifetime; 1800 s is the default")
    elif odd is None or even is None:
        text = "the store does not say when the passwords were last changed"
        advice = f"use `aiopqr rotate`, which records the times, at most once every {rules.spacing:.0f} s"
        yield Finding(Level.NOTE, "rotation spacing", text, advice)
    elif 0 < (apart := abs((odd - even).total_seconds())) < horizon:
        text = (
            f"the last changes were {apart:.0f} s apart, less than lifetime + refresh interval ({horizon:.0f} s): a "
            "pool could have been left with two old passwords"
        )
        advice = f"space changes by at least {rules.spacing:.0f} s; `aiopqr rotate` refuses anything less"
        yield Finding(Level.PROBLEM, "rotation spacing", text, advice)
    else:
        text = f"every pool had time to learn both passwords (lifetime + refresh interval: {horizon:.0f} s)"
        yield Finding(Level.OK, "rotation spacing", text)


def _next_rotation(facts: Facts) -> Iterator[Finding]:
    """When the gate too-soon opens: a spacing after the change of the account that is not to be changed next."""
    times = [time for time in (facts.changed_at.get(parity) for parity in Parity) if time]
    now = next((account.role["now"] for account in facts.accounts.values() if "now" in account.role), None)
    if len(times) < 2 or now is None:
        return
    possible = max(times) + timedelta(seconds=facts.rules.spacing)
    left = (possible - now).total_seconds()
    text = f"possible at {moment(possible)}, in {duration(left)}" if left > 0 else f"possible since {moment(possible)}"
    yield Finding(Level.OK, "next rotation", text)


def file_findings(mode: int, links: int) -> Iterator[Finding]:
    """About the file of the secret: who can read it, and whether it has another name."""
    if mode & 0o007:
        text = f"every user of this machine can read or write the secret (mode {mode & 0o777:o})"
        yield Finding(Level.WARNING, "file", text, "chmod 640 or stricter; for a mounted Secret, defaultMode: 0440")
    elif mode & 0o020:
        text = f"the group can write the secret (mode {mode & 0o777:o})"
        yield Finding(Level.WARNING, "file", text, "chmod 640 or stricter")
    if links > 1:
        text = f"the file has {links} names (hard links): a rotation replaces one, and the others keep the old content"
        yield Finding(Level.WARNING, "file", text, "keep one name, and make the others symlinks to it")


def _schedule(schedule: Schedule, rules: Rules) -> Iterator[Finding]:
    if not schedule.enabled:
        yield Finding(
            Level.NOTE, "rotation schedule", "the store does not rotate by itself", "schedule `aiopqr rotate`"
        )
        return
    parts = [schedule.rule or "an unknown rule"]
    parts += [f"last {schedule.last:%Y-%m-%d %H:%M %Z}"] if schedule.last else ["not yet run"]
    parts += [f"next {schedule.next:%Y-%m-%d %H:%M %Z}"] if schedule.next else []
    text = ", ".join(parts)
    if schedule.period is not None and schedule.period.total_seconds() < rules.spacing:
        text += f": more often than every lifetime + refresh interval + margin ({rules.spacing:.0f} s)"
        advice = "rotate less often, or shorten max_lifetime, so that the two passwords change further apart"
        yield Finding(Level.PROBLEM, "rotation schedule", text, advice)
    else:
        yield Finding(Level.OK, "rotation schedule", text)


def period_of(rule: str) -> timedelta | None:
    """The time between two rotations by AWS's ``rate(…)``; None for ``cron(…)``, which may hold any."""
    match = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", rule.strip())
    return timedelta(**{f"{match[2]}s": int(match[1])}) if match else None
