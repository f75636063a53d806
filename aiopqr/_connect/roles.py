"""How to ask a server itself whether it takes writes, where ``target_session_attrs`` wants one that does.

asyncpg believes what the server reports at the login. A pooler may report what another server was: PgBouncer repeats
what it heard first.
"""

from __future__ import annotations

# They answer with one row or none, and the command's tag says which: one round trip, and no statement is prepared.
_PRIMARY = "SELECT 1 WHERE NOT pg_catalog.pg_is_in_recovery()"
# What the session starts with counts, not what a user has SET in it.
_READ_WRITE = (
    f"{_PRIMARY} AND (pg_catalog.current_setting('default_transaction_read_only') = 'off' OR (SELECT reset_val "
    "FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only') = 'off')"
)
QUESTIONS = {"primary": _PRIMARY, "read-write": _READ_WRITE}
NO_WRITER = "SELECT 0"
WARY = 60.0  # seconds for which new connections are asked after one has turned out to be wrong
