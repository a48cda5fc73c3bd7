"""Writes by the id that a replica's spool knows them by, and when a conversation was deleted."""

from devmentor.pbml.migrations.run import execute

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        -- A write that was, or may have to be, spooled: written with it, so that a replay finds what is done. Rows stay
        -- as long as the ledger's: a watermark of a spool is resolved by them, on any replica.
        CREATE TABLE spool_entries (
            entry_id uuid PRIMARY KEY,
            tenant text NOT NULL,
            seq bigint,                                   -- NULL only inside the transaction that writes it
            replays integer NOT NULL DEFAULT 0
        );

        -- Turns that were acknowledged before this and are replayed after it do not come back.
        ALTER TABLE conversations ADD COLUMN deleted_at timestamptz;
    """)


def downgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("ALTER TABLE conversations DROP COLUMN deleted_at")
    execute("DROP TABLE spool_entries")
