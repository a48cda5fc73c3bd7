"""How a version was chunked, where a chunk stands, pinned facts."""

from devmentor.pbml.migrations.run import execute

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        -- The chunker's rules, grammar and size. NULL: not chunked yet, or by the first release.
        ALTER TABLE versions ADD COLUMN chunker text;

        CREATE OR REPLACE VIEW live_chunks AS
            SELECT k.tenant, k.document_id, k.version, k.chunk, k.conversation_id, k.section, k.body, v.title, v.kind,
                k.start_char, k.end_char
            FROM chunks k
            JOIN documents d ON d.tenant = k.tenant AND d.document_id = k.document_id
                AND d.live_version = k.version AND d.deleted_version < k.version
            JOIN versions v ON v.tenant = k.tenant AND v.document_id = k.document_id AND v.version = k.version;

        CREATE TABLE pins (
            tenant text NOT NULL,
            conversation_id text NOT NULL,                -- '': in every answer of the tenant
            name text NOT NULL,
            body text NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (tenant, conversation_id, name)
        );
    """)


def downgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        DROP TABLE pins;
        DROP VIEW live_chunks;
        CREATE VIEW live_chunks AS
            SELECT k.tenant, k.document_id, k.version, k.chunk, k.conversation_id, k.section, k.body, v.title, v.kind
            FROM chunks k
            JOIN documents d ON d.tenant = k.tenant AND d.document_id = k.document_id
                AND d.live_version = k.version AND d.deleted_version < k.version
            JOIN versions v ON v.tenant = k.tenant AND v.document_id = k.document_id AND v.version = k.version;
        ALTER TABLE versions DROP COLUMN chunker;
        -- The release before searches by this one. Built in this transaction, chunks wait for it.
        CREATE INDEX IF NOT EXISTS chunks_body ON chunks USING gin (to_tsvector('simple', body));
        DROP INDEX IF EXISTS chunks_lexemes, versions_said;
    """)
