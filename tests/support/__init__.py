"""What stands between a client and a Postgres, or beside it: a proxy, a PgBouncer, a standby. For our tests only."""
