"""How to ask a server whether it accepts writes, if ``target_session_attrs`` requires that.

asyncpg relies on what the server reports at login. Behind a pooler, that may be the state of another server: PgBouncer
repeats what the first server reported.
"""

from __future__ import annotations

# The queries return one row or none, and the command tag shows which. So no statement needs to be prepared, and one
# round trip is enough.
_PRIMARY = "SELECT 1 WHERE NOT pg_catalog.pg_is_in_recovery()"
# The session's initial value counts, not what a user has SET since.
_READ_WRITE = (
    f"{_PRIMARY} AND (pg_catalog.current_setting('default_transaction_read_only') = 'off' OR (SELECT reset_val "
    "FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only') = 'off')"
)
QUESTIONS = {"primary": _PRIMARY, "read-write": _READ_WRITE}
NO_WRITER = "SELECT 0"
CHECK_FOR = 60.0  # how many seconds after a wrong report to keep asking the servers of new connections
