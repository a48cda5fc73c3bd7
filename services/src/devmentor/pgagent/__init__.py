"""The failover agent: one on every PostgreSQL and PgBouncer host (docs/postgres-ha-protocol.md)."""
