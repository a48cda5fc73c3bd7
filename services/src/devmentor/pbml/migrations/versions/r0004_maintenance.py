"""Maintenance by one worker at a time, and listings."""

from devmentor.pbml.migrations.run import execute

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # Waiting behind a long transaction, it would hold up every statement on the ledger: rather fail and be run again.
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        -- Who does a piece of maintenance, until when, and how far it is. Written by its holder alone.
        CREATE TABLE maintenance (
            task text PRIMARY KEY,
            state jsonb NOT NULL DEFAULT '{}',
            incomplete boolean NOT NULL DEFAULT false,    -- of the rebuild: the index lacks what is live
            holder text,
            held_until timestamptz
        );
        INSERT INTO maintenance (task) VALUES ('rebuild'), ('reconcile');

        -- Versions of which the index may have points: they are written once the vectors are in the ledger. Those of
        -- live ones must be there.
        CREATE VIEW indexable_versions AS
            SELECT v.tenant, v.document_id, v.version, v.status = 'live' AS live
            FROM versions v
            JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id
            WHERE v.status IN ('embedded', 'indexed', 'live') AND v.kind <> 'deletion'
                AND v.version >= d.live_version AND v.version > d.deleted_version;

        -- Listings are in the order of bytes, so that a prefix is a range whatever the database's collation.
        CREATE INDEX documents_listed ON documents (tenant, document_id COLLATE "C");
        CREATE INDEX conversations_listed ON conversations (tenant, conversation_id COLLATE "C");
    """)


def downgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("DROP VIEW indexable_versions")
    execute("DROP TABLE maintenance")
    execute("DROP INDEX documents_listed, conversations_listed")
