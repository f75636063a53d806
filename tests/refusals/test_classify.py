"""What a failed connect means: the whole table, with the messages that servers and proxies were recorded to send."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import asyncpg
import pytest

from aiopqr.refusals import Verdict, classify, is_connection_lost

CREDENTIAL, ACCOUNT, FULL = Verdict.CREDENTIAL, Verdict.ACCOUNT, Verdict.ACCOUNT_FULL
SERVER_FULL, OUTAGE, FATAL = Verdict.SERVER_FULL, Verdict.OUTAGE, Verdict.FATAL


def server_error(sqlstate: str, message: str, routine: str | None = None) -> asyncpg.PostgresError:
    """An error as asyncpg makes it from the server's message."""
    fields = {"S": "FATAL", "C": sqlstate, "M": message, **({"R": routine} if routine else {})}
    error: asyncpg.PostgresError = asyncpg.PostgresError.new(fields)
    return error


POSTGRES = [
    ("28P01", "auth_failed", 'password authentication failed for user "app_odd"', CREDENTIAL),
    ("28P01", "auth_failed", "Passwort-Authentifizierung für Benutzer »app_odd« fehlgeschlagen", CREDENTIAL),
    ("28000", "InitializeSessionUserId", 'role "app_odd" is not permitted to log in', ACCOUNT),
    ("28000", "InitializeSessionUserId", 'role "app_odd" does not exist', ACCOUNT),
    ("28000", "ClientAuthentication", 'pg_hba.conf rejects connection for host "10.0.0.1", user "app_odd"', FATAL),
    ("28000", "ClientAuthentication", 'no pg_hba.conf entry for host "10.0.0.1", user "app_odd"', FATAL),
    ("28000", "auth_failed", 'PAM authentication failed for user "app_odd"', CREDENTIAL),
    ("28000", "auth_failed", 'LDAP authentication failed for user "app_odd"', CREDENTIAL),
    ("28000", "auth_failed", 'RADIUS authentication failed for user "app_odd"', CREDENTIAL),
    ("28000", "auth_failed", 'GSSAPI authentication failed for user "app_odd"', CREDENTIAL),
    ("28000", "auth_failed", 'certificate authentication failed for user "app_odd"', CREDENTIAL),
    ("28000", "auth_failed", 'Cloud SQL IAM user authentication failed for user "app_odd"', CREDENTIAL),
    ("53300", "InitializeSessionUserId", 'too many connections for role "app_odd"', FULL),
    ("53300", "ProcArrayAdd", "sorry, too many clients already", SERVER_FULL),
    ("53300", "InitPostgres", "remaining connection slots are reserved for roles with SUPERUSER", SERVER_FULL),
    ("53300", "CheckMyDatabase", 'too many connections for database "orders"', SERVER_FULL),
    ("42501", "CheckMyDatabase", 'permission denied for database "orders"', ACCOUNT),
    ("42501", "aclcheck_error", "permission denied for schema public", FATAL),
    ("57P03", "ProcessStartupPacket", "the database system is starting up", OUTAGE),
    ("57P03", "ProcessStartupPacket", "the database system is shutting down", OUTAGE),
    ("57P03", "ProcessStartupPacket", "the database system is in recovery mode", OUTAGE),
    ("57P03", "ProcessStartupPacket", "the database system is not yet accepting connections", OUTAGE),
    ("57P01", "ProcessInterrupts", "terminating connection due to administrator command", OUTAGE),
    ("57P02", "quickdie", "terminating connection because of crash of another server process", OUTAGE),
    ("3D000", "InitPostgres", 'database "nowhere" does not exist', FATAL),
    ("42704", "set_config_option", 'unrecognized configuration parameter "nonsense"', FATAL),
    ("22023", "set_config_option", 'invalid value for parameter "work_mem": "-1"', FATAL),
    ("08P01", "ProcessStartupPacket", "invalid startup packet layout: expected terminator as last byte", FATAL),
    ("53200", "AllocSetAlloc", "out of memory", OUTAGE),
    ("08006", None, "connection failure", OUTAGE),
    ("XX000", "elog_finish", "cache lookup failed for relation 1", FATAL),
]

PROXIES = [
    # PgBouncer's own
    ("08P01", "password authentication failed", CREDENTIAL),
    ("08P01", "SASL authentication failed", CREDENTIAL),
    ("08P01", "no such user: app_odd", CREDENTIAL),
    ("08P01", "PAM authentication failed", CREDENTIAL),
    ("08P01", "LDAP authentication failed", CREDENTIAL),
    ("08P01", "Auth failed", CREDENTIAL),
    ("08P01", "no more connections allowed (max_client_conn)", SERVER_FULL),
    ("08P01", "query_wait_timeout", OUTAGE),
    ("08P01", "client_login_timeout", OUTAGE),
    ("08P01", "server_connect_timeout", OUTAGE),
    ("08P01", "pooler is shutting down", OUTAGE),
    ("08P01", "no more connections allowed (max_client_conn)", SERVER_FULL),
    ("08P01", "client connections exceeded (max_user_client_connections)", FULL),
    ("08P01", "client connections exceeded (max_db_client_connections)", SERVER_FULL),
    # PgBouncer's server login, by the embedded text if there is one
    (
        "08P01",
        "server login has been failing, cached error: password authentication failed for user (server_login_retry)",
        CREDENTIAL,
    ),
    (
        "08P01",
        "server login has been failing, cached error: the database system is starting up (server_login_retry)",
        OUTAGE,
    ),
    (
        "08P01",
        'server login has been failing, cached error: too many connections for role "app_odd" (server_login_retry)',
        FULL,
    ),
    (
        "08P01",
        "server login has been failing, cached error: connect failed (server_login_retry)",
        OUTAGE,
    ),
    ("28P01", 'password authentication failed for user "app_odd"', CREDENTIAL),
    # RDS Proxy
    (
        "28000",
        "This RDS proxy has no credentials for the role app_odd. Check the credentials for this role",
        CREDENTIAL,
    ),
    ("28000", "The password that was provided for the role app_odd is wrong.", CREDENTIAL),
    ("28000", "The request failed because there are too many competing requests", OUTAGE),
    ("28000", "Rate of connection to proxy exceeded the limit", OUTAGE),
    # Cloud SQL, Azure
    ("28000", 'Cloud SQL IAM user authentication failed for user "app_odd"', CREDENTIAL),
    ("28000", "The access token has expired. Acquire a new token and retry.", CREDENTIAL),
    # Supavisor
    ("28P01", "password authentication failed", CREDENTIAL),
    ("XX000", "(ENOTFOUND) tenant/user app_odd.abc not found", ACCOUNT),
    ("XX000", "Tenant or user not found", ACCOUNT),
    ("XX000", "(ECIRCUITBREAKER) too many authentication failures", OUTAGE),
    ("XX000", "(EMAXCONNSESSION) max clients reached in session mode", SERVER_FULL),
    ("XX000", "MaxClientsInSessionMode: max clients reached", SERVER_FULL),
    ("XX000", "Max client connections reached", SERVER_FULL),
    ("XX000", "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 60000ms", SERVER_FULL),
    # RDS Proxy, Odyssey
    ("08000", "Timed-out waiting to acquire database connection", SERVER_FULL),
    ("53300", "odyssey: c1a2: too many tcp connections (global client_max 100)", SERVER_FULL),
    # pgcat
    ("58000", "could not get connection from the pool - AllServersDown", SERVER_FULL),
    ("58000", 'No pool configured for database: "orders", user: "app_odd"', ACCOUNT),
    ("58000", "Pool down for database", OUTAGE),
    ("58000", "all replicas banned", SERVER_FULL),
    # PgDog
    ("28000", 'password for user "app_odd" and database "orders" is wrong, or the database does not exist', CREDENTIAL),
    ("58000", "connection pool is down", OUTAGE),
    ("58000", "checkout timeout", SERVER_FULL),
    # Pgpool-II, Neon, and words that any other proxy may use
    ("53300", "Sorry, too many clients already", SERVER_FULL),
    ("XX000", "pgpool is not accepting any new connections", OUTAGE),
    ("XX000", "all backend nodes are down, pgpool requires at least one valid node", OUTAGE),
    ("XX000", "Too many database connection attempts are currently ongoing.", SERVER_FULL),
    ("XX000", "Couldn't connect to compute node", OUTAGE),
    ("XX000", "too many active clients", SERVER_FULL),
    ("XX000", "connection pool exhausted", SERVER_FULL),
    ("58000", "the pool is full", SERVER_FULL),
    ("08P01", "connection limit reached", SERVER_FULL),
    ("XX000", "Circuit breaker open: unable to establish connection to upstream database", OUTAGE),
    # A server whose routine a proxy swallowed
    ("28000", 'no pg_hba.conf entry for host "10.0.0.1", user "app_odd", database "orders", no encryption', FATAL),
    ("28000", 'role "app_odd" is not permitted to log in', ACCOUNT),
    ("28000", 'role "app_odd" does not exist', ACCOUNT),
    ("28000", "something that nobody has recorded", CREDENTIAL),
    ("53300", 'too many connections for role "app_odd"', FULL),
    ("53300", "sorry, too many clients already", SERVER_FULL),
    ("42501", 'permission denied for database "orders"', ACCOUNT),
    ("3D000", 'database "nowhere" does not exist', FATAL),
    ("57P03", "the database system is starting up", OUTAGE),
    ("08P01", "unsupported startup parameter: search_path", FATAL),
]


@pytest.mark.parametrize(("sqlstate", "routine", "message", "verdict"), POSTGRES, ids=str)
def test_postgres_is_understood_by_sqlstate_and_routine(
    sqlstate: str, routine: str | None, message: str, verdict: Verdict
) -> None:
    assert classify(server_error(sqlstate, message, routine)) is verdict


@pytest.mark.parametrize(("sqlstate", "message", "verdict"), PROXIES, ids=str)
def test_a_proxy_which_names_no_routine_is_understood_by_its_text(
    sqlstate: str, message: str, verdict: Verdict
) -> None:
    assert classify(server_error(sqlstate, message)) is verdict


@pytest.mark.parametrize(("sqlstate", "routine", "_message", "verdict"), POSTGRES, ids=str)
def test_the_text_of_a_server_that_names_its_routine_is_never_read(
    sqlstate: str, routine: str | None, _message: str, verdict: Verdict
) -> None:
    misleading = 'no pg_hba.conf entry; too many connections for role; no such user; role "x" does not exist'
    if routine:
        assert classify(server_error(sqlstate, misleading, routine)) is verdict


CLIENT: list[tuple[BaseException, Verdict]] = [
    (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), OUTAGE),
    (ConnectionResetError(errno.ECONNRESET, "reset"), OUTAGE),
    (ConnectionAbortedError(errno.ECONNABORTED, "aborted"), OUTAGE),
    (BrokenPipeError(errno.EPIPE, "pipe"), OUTAGE),
    (ConnectionError("unexpected connection_lost() call"), OUTAGE),
    (ConnectionError('PostgreSQL server at "db:5432" rejected SSL upgrade'), FATAL),
    (OSError(errno.EHOSTUNREACH, "no route"), OUTAGE),
    (OSError(errno.ENETUNREACH, "no network"), OUTAGE),
    (OSError(errno.ETIMEDOUT, "timed out"), OUTAGE),
    (OSError(errno.EADDRNOTAVAIL, "no local port"), OUTAGE),
    (OSError(errno.EAGAIN, "backlog full"), OUTAGE),
    (OSError(errno.EMFILE, "too many open files"), FATAL),
    (OSError(errno.EINVAL, "invalid"), FATAL),
    (OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 111] Connect call failed"), OUTAGE),
    (OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 22] Invalid argument"), FATAL),
    (OSError("nothing is said"), FATAL),
    (TimeoutError(), OUTAGE),
    (EOFError(), OUTAGE),
    (socket.gaierror(socket.EAI_AGAIN, "try again"), OUTAGE),
    (socket.gaierror(socket.EAI_NONAME, "no such name"), FATAL),
    (ssl.SSLCertVerificationError(1, "certificate verify failed"), FATAL),
    (ssl.SSLError(1, "wrong version number"), FATAL),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), OUTAGE),
    (ssl.SSLZeroReturnError(6, "closed"), OUTAGE),
    (PermissionError(errno.EACCES, "key file"), FATAL),
    (FileNotFoundError(errno.ENOENT, "ca.pem"), FATAL),
    (asyncpg.InterfaceError("a mistake"), FATAL),
    (ValueError("a mistake"), FATAL),
]


@pytest.mark.parametrize(("error", "verdict"), CLIENT, ids=repr)
def test_what_the_network_and_the_client_raise_is_an_outage_or_a_mistake(
    error: BaseException, verdict: Verdict
) -> None:
    assert classify(error) is verdict


def test_a_missing_file_is_an_outage_where_a_unix_socket_was_sought() -> None:
    assert classify(FileNotFoundError(errno.ENOENT, "/run/.s.PGSQL.5432"), unix_socket=True) is OUTAGE
    assert classify(PermissionError(errno.EACCES, "/run/.s.PGSQL.5432"), unix_socket=True) is FATAL


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        (server_error("28P01", "password authentication failed", "auth_failed"), CREDENTIAL),
        (server_error("28000", "role is not permitted to log in", "InitializeSessionUserId"), ACCOUNT),
        (server_error("53300", "too many connections for role", "InitializeSessionUserId"), FULL),
        (server_error("28000", "no pg_hba.conf entry", "ClientAuthentication"), FATAL),
        (server_error("57P03", "starting up", "ProcessStartupPacket"), FATAL),
    ],
    ids=str,
)
def test_prefer_and_allow_that_log_in_twice_are_judged_by_the_refusal_of_the_account(
    first: asyncpg.PostgresError, verdict: Verdict
) -> None:
    second = server_error("28000", "pg_hba.conf rejects connection, no encryption", "ClientAuthentication")
    second.__cause__ = first
    assert classify(second) is verdict


def test_a_second_login_that_was_refused_too_speaks_for_itself() -> None:
    second = server_error("28P01", "password authentication failed", "auth_failed")
    second.__cause__ = server_error("28000", "no pg_hba.conf entry", "ClientAuthentication")
    assert classify(second) is CREDENTIAL


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_blames_the_account_or_passes_or_is_fatal(verdict: Verdict) -> None:
    assert [verdict.blames_account, verdict.is_transient, verdict is FATAL].count(True) == 1


LOST: list[tuple[Any, bool]] = [
    (server_error("57P01", "terminating connection due to administrator command"), True),
    (server_error("57P02", "terminating connection because of crash"), True),
    (server_error("57P03", "cannot connect now"), True),
    (server_error("57P05", "terminating connection due to idle-session timeout"), True),
    (server_error("08006", "connection failure"), True),
    (server_error("08P01", "protocol violation"), True),
    (server_error("57014", "canceling statement due to user request"), False),
    (server_error("25P02", "current transaction is aborted"), False),
    (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), True),
    (asyncpg.InterfaceError("connection is closed"), True),
    (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), False),
    (asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"), True),
    (ConnectionResetError(), True),
    (BrokenPipeError(), True),
    (EOFError(), True),
    (TimeoutError(), False),
    (ValueError(), False),
]


@pytest.mark.parametrize(("error", "is_lost"), LOST, ids=repr)
def test_a_lost_connection_is_told_from_a_failed_query(error: BaseException, is_lost: bool) -> None:
    assert is_connection_lost(error) is is_lost


UNKNOWN_OF_A_PROXY = [("08P01", "something new"), ("XX000", "(ENEW) something new"), ("58000", "something new")]


@pytest.mark.parametrize(("sqlstate", "message"), UNKNOWN_OF_A_PROXY)
def test_what_an_unknown_proxy_says_about_itself_passes_once_a_connect_has_worked(sqlstate: str, message: str) -> None:
    unknown = server_error(sqlstate, message)
    assert classify(unknown) is FATAL
    assert classify(unknown, has_worked=True) is OUTAGE


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_NONAME, "unknown"), asyncpg.TargetServerAttributeNotMatched("none")], ids=str
)
def test_a_name_and_a_role_that_were_found_before_are_waited_for(error: Exception) -> None:
    assert classify(error) is FATAL
    assert classify(error, has_worked=True) is OUTAGE


@pytest.mark.parametrize(("sqlstate", "message"), [("3D000", "no such database"), ("28000", "no pg_hba.conf entry")])
def test_a_mistake_stays_one_also_after_a_connect_has_worked(sqlstate: str, message: str) -> None:
    assert classify(server_error(sqlstate, message), has_worked=True) is FATAL
    assert classify(server_error("XX000", "cache lookup failed", "elog_finish"), has_worked=True) is FATAL
