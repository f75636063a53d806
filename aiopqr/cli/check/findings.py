"""Judges the facts for ``aiopqr check``: each finding says what is the case, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ...credentials import Parity
from ...rotation.words import moment
from .facts import AccountFacts
from .roles import of_account, of_both
from .timing import changes, next_rotation, of_schedule
from .values import CheckFacts, Finding, Level


def findings(facts: CheckFacts) -> Iterator[Finding]:
    """All findings, beginning with the most basic checks."""
    yield from _pair(facts)
    yield from _logins(facts)
    yield from _tls(facts)
    accounts = [account for account in facts.accounts.values() if account.logs_in]
    for account in accounts:
        yield from of_account(account, facts)
    if len(accounts) == 2:
        yield from of_both(*accounts)
    if accounts:
        yield from _authentication(accounts)
        yield from _proxy(accounts)
    yield from changes(facts)
    yield from next_rotation(facts)
    if facts.schedule is not None:
        yield from of_schedule(facts.schedule, facts.rules)


def _pair(facts: CheckFacts) -> Iterator[Finding]:
    missing, pending = facts.pair.missing, facts.pair.pending
    if facts.pair.is_single:
        text = "there is one account: while its password changes, connects wait until the store has the new password"
        advice = "a second account removes that wait: create it with `aiopqr setup`; your code can stay as it is"
        yield Finding(Level.NOTE, "accounts", text, advice)
        for account in facts.pair.credentials():
            if account.expires_at:
                text = f"the password of {account.username!r} expires at {account.expires_at:%Y-%m-%d %H:%M:%S %Z}"
                yield Finding(Level.OK, "expiry", text)
    elif missing:
        text = f"the secret has no {missing} account: while the other one's password changes, nothing can connect"
        yield Finding(
            Level.PROBLEM, "pair", text, "create both accounts with `aiopqr setup`, and store both in the secret"
        )
    elif pending:
        text = f"a new password for {pending.username!r} is staged: a rotation is running, or was interrupted"
        if facts.pair.pending_since:
            text += (
                f"; it was staged at {moment(facts.pair.pending_since)}, and pools avoid the account for at most 15 "
                "minutes"
            )
        yield Finding(Level.WARNING, "pair", text, "if no rotation is running, finish this one with `aiopqr rotate`")
    else:
        yield Finding(Level.OK, "pair", "both accounts are in the secret")


def _logins(facts: CheckFacts) -> Iterator[Finding]:
    for parity, account in facts.accounts.items():
        name = f"{parity} logs in"
        if account.logs_in:
            yield Finding(Level.OK, name, account.username)
            continue
        why, advice = _why_not(parity, facts.accounts.get(parity.other))
        if account.verdict is None or not account.verdict.blames_account:
            advice = "the password is not to blame: check the DSN, the network and pg_hba.conf"
        what = "cannot log in"
        if account.connected:
            what, why = "can log in, but what it may do could not be read", ""
        yield Finding(Level.PROBLEM, name, f"{account.username!r} {what}: {account.problem}{why}", advice)


def _why_not(parity: Parity, other: AccountFacts | None) -> tuple[str, str]:
    """Why an account cannot log in, as far as the other one can see, and what to do about it."""
    repair = f"`aiopqr rotate --account {parity} --force-mismatch` sets a new password, in the database and the store"
    if other is None or not other.logs_in:
        return "", f"look for the reason in the server's log; {repair}"
    if other.other is None:
        advice = "correct the name in the secret; or drop the other account, delete the secret, and run `aiopqr setup`"
        return "; no role has this name", advice
    end, now = other.other["valid_until"], other.other["now"]
    if end is not None and end <= now:
        return f"; its VALID UNTIL passed at {moment(end)}", f"`aiopqr rotate --account {parity}` renews it"
    if not other.other["can_login"]:
        return "; the role is NOLOGIN", "run ALTER ROLE … LOGIN (`aiopqr setup` does this)"
    return "; the role may log in, so the stored password is not the one in the database", repair


def _tls(facts: CheckFacts) -> Iterator[Finding]:
    mode = facts.sslmode
    if mode is None:
        yield Finding(Level.OK, "TLS", "not needed on a Unix socket")
    elif mode in ("prefer", "allow"):
        switched = "off" if mode == "prefer" else "on"
        text = f"sslmode={mode}: the server is not verified, and a refused login is repeated with TLS {switched}"
        yield Finding(Level.WARNING, "TLS", text, "use sslmode=verify-full, or sslmode=disable if you do not want TLS")
    elif mode == "disable":
        text = "sslmode=disable: anyone on the network can read queries and data"
        yield Finding(Level.NOTE, "TLS", text, "use sslmode=verify-full, unless the server is on this machine")
    elif mode in ("require", "verify-ca"):
        text = f"sslmode={mode}: encrypted, but the server's name is not verified"
        yield Finding(Level.NOTE, "TLS", text, "use sslmode=verify-full")
    else:
        yield Finding(Level.OK, "TLS", f"sslmode={mode}")


def _authentication(accounts: list[AccountFacts]) -> Iterator[Finding]:
    methods = {account.authentication for account in accounts}
    asked = " and ".join(sorted({account.asked for account in accounts if account.asked}))
    for method in sorted(methods, key=str):
        if method is None:
            text = "servers before Postgres 16 do not report how a login was authenticated"
            text += f"; this one asked for {asked}" if asked else ""
            yield Finding(Level.NOTE, "authentication", text, "make sure that pg_hba.conf says scram-sha-256")
        elif method == "scram-sha-256":
            yield Finding(Level.OK, "authentication", f"SCRAM-SHA-256 (the server asked for {asked or 'it'})")
        elif method == "md5":
            text = "pg_hba.conf says md5: the server uses SCRAM if it has a SCRAM verifier, and MD5 otherwise"
            advice = "rotate each account once, to store SCRAM verifiers; then write scram-sha-256 in pg_hba.conf"
            yield Finding(Level.WARNING, "authentication", text, advice)
        elif not method:
            text = "the server asks for no password (trust), so logging in does not test the stored one"
            yield Finding(Level.PROBLEM, "authentication", text, "write scram-sha-256 in pg_hba.conf")
        else:
            text = f"the server authenticates with {method}, so ALTER ROLE does not change the password that counts"
            yield Finding(Level.WARNING, "authentication", text, "change passwords where that method keeps them")


def _proxy(accounts: list[AccountFacts]) -> Iterator[Finding]:
    if not any(account.proxied for account in accounts):
        yield Finding(Level.OK, "proxy", "there is no pooling proxy")
        return
    text = (
        "connections go through a pooling proxy, such as PgBouncer: it must look up new passwords itself, it keeps "
        "server connections that were opened with old ones, and in transaction mode it must support prepared statements"
    )
    advice = (
        "use auth_query and auth_type=scram-sha-256, not a static userlist; set server_lifetime below max_lifetime; "
        "set statement_cache_size=0 unless the proxy has max_prepared_statements; give `rotate --dsn` this same DSN"
    )
    yield Finding(Level.NOTE, "proxy", text, advice)


def file_findings(mode: int, links: int) -> Iterator[Finding]:
    """Whether the secret's file has safe permissions and only one name."""
    if mode & 0o007:
        text = f"every user of this machine can read or write the secret (mode {mode & 0o777:o})"
        yield Finding(Level.WARNING, "file", text, "use chmod 640 or stricter; for a mounted Secret, defaultMode: 0440")
    elif mode & 0o020:
        text = f"the group can write the secret (mode {mode & 0o777:o})"
        yield Finding(Level.WARNING, "file", text, "use chmod 640 or stricter")
    if links > 1:
        text = f"the file has {links} names (hard links): a rotation replaces one, and the others keep the old content"
        yield Finding(Level.WARNING, "file", text, "keep one name, and make the others symlinks to it")
