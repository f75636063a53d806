"""Decides what a failed connect means, by its SQLSTATE and by the routine in the server that raised the error.

The routine (protocol field ``R``, asyncpg's ``server_source_function``) is not localised, and it distinguishes errors
with the same SQLSTATE: 28000 can be a locked account, a failed PAM login or a reject rule in pg_hba.conf. Proxies do
not send a routine, so their error texts are matched instead. Sources: PostgreSQL's ``auth.c``, ``miscinit.c`` and
``postinit.c``; PgBouncer's ``client.c`` and ``objects.c``; the error texts of Supavisor, pgcat, PgDog, Pgpool-II and
Neon.
"""

from __future__ import annotations

import enum
import errno
import re
import socket
import ssl

import asyncpg

__all__ = [
    "Verdict",
]


class Verdict(enum.StrEnum):
    """What a failed connect means for the account it was tried with."""

    CREDENTIAL = "credential"  # this password is not accepted: try the other account, and refresh
    ACCOUNT = "account"  # this account may not connect with any password: try the other one
    ACCOUNT_FULL = "account full"  # this account's connection limit is reached: use the other one for a while
    SERVER_FULL = "server full"  # no connection slots: wait; the account is not the reason
    OUTAGE = "outage"  # the server or the network is down: wait; the account is not the reason
    FATAL = "fatal"  # an error that waiting does not cure: raise it immediately

    @property
    def blames_account(self) -> bool:
        """Whether the account is the reason, so that the other one may work."""
        return self in (Verdict.CREDENTIAL, Verdict.ACCOUNT, Verdict.ACCOUNT_FULL)

    @property
    def is_transient(self) -> bool:
        """Whether the same login may succeed later, without anybody doing anything."""
        return self in (Verdict.OUTAGE, Verdict.SERVER_FULL)


def _table(*rows: tuple[str, Verdict]) -> tuple[tuple[re.Pattern[str], Verdict], ...]:
    return tuple((re.compile(pattern, re.IGNORECASE), verdict) for pattern, verdict in rows)


# SQLSTATE -> routine -> verdict; "" stands for any other routine.
_BY_ROUTINE: dict[str, dict[str, Verdict]] = {
    "28P01": {"": Verdict.CREDENTIAL},
    "28000": {
        "InitializeSessionUserId": Verdict.ACCOUNT,  # NOLOGIN, or no such role under trust or cert
        "ClientAuthentication": Verdict.FATAL,  # pg_hba.conf
        "auth_failed": Verdict.CREDENTIAL,  # PAM (RDS IAM), LDAP, RADIUS, GSSAPI, cert
        "": Verdict.CREDENTIAL,
    },
    "53300": {"InitializeSessionUserId": Verdict.ACCOUNT_FULL, "": Verdict.SERVER_FULL},
    "42501": {"CheckMyDatabase": Verdict.ACCOUNT, "": Verdict.FATAL},  # no CONNECT privilege
    "57P03": {"": Verdict.OUTAGE},  # starting up, shutting down, in recovery
    "57P01": {"": Verdict.OUTAGE},  # terminated by an administrator
    "57P02": {"": Verdict.OUTAGE},  # another backend crashed
    # From a server, which sends a routine, 08P01 is a real protocol error. A proxy's is matched by its text first.
    "08P01": {"": Verdict.FATAL},
}
# Whole classes: connection exceptions, and insufficient resources other than 53300.
_BY_CLASS = {"08": Verdict.OUTAGE, "53": Verdict.OUTAGE}
# A proxy's errors of these classes (connection, resources, operator, system, internal) are about itself.
_PROXY_CLASSES = frozenset({"08", "53", "57", "58", "XX"})

_BY_TEXT = _table(
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", Verdict.FATAL),
    (r"too many connections for role|max_user_(client_)?connections", Verdict.ACCOUNT_FULL),
    (r"permission denied for database|is not permitted to log in", Verdict.ACCOUNT),
    # PgBouncer, which uses 08P01 for everything
    (r"(password|SASL|PAM|LDAP) authentication failed|no such user|^auth failed", Verdict.CREDENTIAL),
    (r"no more connections allowed|too many ([a-z]+ )?(clients|connection)", Verdict.SERVER_FULL),
    (r"pool (is )?(full|exhausted)|(connection|client) limit (is )?(reached|exceeded)", Verdict.SERVER_FULL),
    (r"remaining connection slots|max_(db_)?(client_)?conn(ections)?\b", Verdict.SERVER_FULL),
    (r"max clients|max client connections|EMAXCONN|MaxClientsIn", Verdict.SERVER_FULL),
    (r"server login (has been failing|failed)|cannot connect to server|server conn(ection)? crashed", Verdict.OUTAGE),
    (
        r"(query_wait|client_login|server_connect)_timeout|pooler is (shut|paus)|shutting down|starting up",
        Verdict.OUTAGE,
    ),
    # RDS Proxy, Cloud SQL, Azure
    (r"has no credentials for the role|password that was provided for the role", Verdict.CREDENTIAL),
    (r"IAM user authentication failed|access token has expired", Verdict.CREDENTIAL),
    (r"too many competing requests|rate of connection to proxy exceeded", Verdict.OUTAGE),
    (r"time[d ]-?out waiting|(borrow|check ?out|acquire|get) .*(pool|database connection)", Verdict.SERVER_FULL),
    (r"check ?out timeout|all replicas banned", Verdict.SERVER_FULL),
    # Supavisor, pgcat
    (r"\(ENOTFOUND\) tenant/user|tenant or user not found|no pool configured for database", Verdict.ACCOUNT),
    (r"\(ECIRCUITBREAKER\)|circuit breaker open|pool (is )?down", Verdict.OUTAGE),
    # Pgpool-II, Neon
    (r"all backend nodes are down|not accepting any new connections|connect to compute node", Verdict.OUTAGE),
    (r"role .* does not exist", Verdict.ACCOUNT),
)
_CACHED_ERROR = re.compile(r"cached error: (.*)", re.DOTALL)

_OUTAGE_ERRNOS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ETIMEDOUT,
        errno.EADDRNOTAVAIL,  # no local port left
        errno.EAGAIN,  # a Unix socket whose backlog is full
        getattr(errno, "EHOSTDOWN", errno.EHOSTUNREACH),
    }
)


def classify(exc: BaseException, *, unix_socket: bool = False, has_worked: bool = False) -> Verdict:
    """Decide what ``exc``, raised by a connect, means.

    ``unix_socket`` says that the connect used a Unix socket, whose file is missing while the server is down.
    ``has_worked`` says that the same connect has succeeded before. Then some errors are taken for transient instead of
    configuration errors: a name that does not resolve, hosts without the wanted role, and an unknown proxy's errors
    about itself.
    """
    verdict = _classify_server(exc) if isinstance(exc, asyncpg.PostgresError) else _classify_client(exc, unix_socket)
    if verdict is Verdict.FATAL and has_worked and _may_pass(exc):
        return Verdict.OUTAGE
    if verdict is Verdict.FATAL and isinstance(exc.__cause__, asyncpg.PostgresError):
        # With sslmode=prefer and allow, asyncpg repeats a refused login with or without TLS, and raises the second
        # error. If pg_hba.conf rejects the second kind of connection, only the first error is about the account.
        cause = classify(exc.__cause__)
        return cause if cause.blames_account else verdict
    return verdict


def tries_next_host(exc: BaseException) -> bool:
    """Whether asyncpg would try the next host after this error."""
    return isinstance(exc, OSError | asyncpg.CannotConnectNowError | asyncpg.TargetServerAttributeNotMatched)


def _may_pass(exc: BaseException) -> bool:
    match exc:
        case asyncpg.PostgresError():
            # A server always names the routine that raised an error, so this one comes from a proxy.
            return not exc.server_source_function and (exc.sqlstate or "")[:2] in _PROXY_CLASSES
        case socket.gaierror() | asyncpg.TargetServerAttributeNotMatched():
            return True
        case _:
            return False


def _classify_server(exc: asyncpg.PostgresError) -> Verdict:
    state, routine, text = exc.sqlstate or "", exc.server_source_function, str(exc)
    if not routine:
        cached = _CACHED_ERROR.search(text)
        for part in (cached[1], text) if cached else (text,):
            for pattern, verdict in _BY_TEXT:
                if pattern.search(part):
                    return verdict
    if by_routine := _BY_ROUTINE.get(state):
        return by_routine.get(routine or "", by_routine[""])
    return _BY_CLASS.get(state[:2], Verdict.FATAL)


def _classify_client(exc: BaseException, unix_socket: bool) -> Verdict:
    match exc:
        case TimeoutError() | EOFError() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return Verdict.OUTAGE
        case socket.gaierror():
            return Verdict.OUTAGE if exc.errno == socket.EAI_AGAIN else Verdict.FATAL
        case ssl.SSLError() | PermissionError():
            return Verdict.FATAL
        case FileNotFoundError():
            return Verdict.OUTAGE if unix_socket else Verdict.FATAL
        case ConnectionError():
            return Verdict.FATAL if "rejected SSL upgrade" in str(exc) else Verdict.OUTAGE
        case OSError(errno=None):
            # If a name has several addresses, asyncio joins their errors into one text.
            numbers = {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(exc))}
            return Verdict.OUTAGE if numbers and numbers <= _OUTAGE_ERRNOS else Verdict.FATAL
        case OSError():
            return Verdict.OUTAGE if exc.errno in _OUTAGE_ERRNOS else Verdict.FATAL
        case _:
            return Verdict.FATAL


def refuses_writes(exc: BaseException) -> bool:
    """Whether ``exc``, its cause, or an exception in its group reports a read-only transaction (SQLSTATE 25006)."""
    if isinstance(exc, BaseExceptionGroup):
        return any(map(refuses_writes, exc.exceptions))
    return any(getattr(one, "sqlstate", None) == "25006" for one in (exc, exc.__cause__))


_LOST_STATES = frozenset({"57P01", "57P02", "57P03", "57P05"})


def is_connection_lost(exc: BaseException) -> bool:
    """Whether ``exc``, raised by an operation on an open connection, says that the connection is gone.

    If a session was terminated while idle, the next query raises the server's FATAL error, an error about the closed
    connection, or asyncpg's ``InternalClientError: cannot switch to state`` (because the unexpected FATAL has changed
    the state of its protocol).
    """
    match exc:
        case TimeoutError():
            return False
        case asyncpg.PostgresError():
            return (exc.sqlstate or "")[:2] == "08" or exc.sqlstate in _LOST_STATES
        case asyncpg.InterfaceError():
            return "connection is closed" in str(exc) or "closed in the middle" in str(exc)
        case asyncpg.InternalClientError():
            return True
        case OSError() | EOFError():
            return True
        case _:
            return False
