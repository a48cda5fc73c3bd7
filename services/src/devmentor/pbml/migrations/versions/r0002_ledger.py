"""Documents, the ledger of their versions, chunks, conversations, generations, idempotency keys."""

from devmentor.pbml.migrations.run import execute

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    execute("""
        CREATE TABLE documents (
            tenant text NOT NULL,
            document_id text NOT NULL,
            latest_version integer NOT NULL,
            live_version integer NOT NULL DEFAULT 0,      -- 0: none yet
            deleted_version integer NOT NULL DEFAULT 0,   -- versions up to here are gone
            PRIMARY KEY (tenant, document_id)
        );

        -- The ledger: a row for everything that was acknowledged. seq is the watermark.
        CREATE TABLE versions (
            tenant text NOT NULL,
            document_id text NOT NULL,
            version integer NOT NULL,
            seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
            kind text NOT NULL CHECK (kind IN ('document', 'turn', 'deletion')),
            conversation_id text,
            role text,
            title text,
            metadata jsonb NOT NULL DEFAULT '{}',
            content text,                                 -- NULL once superseded or deleted
            content_bytes integer NOT NULL DEFAULT 0,
            status text NOT NULL DEFAULT 'received'
                CHECK (status IN ('received', 'embedded', 'indexed', 'live', 'superseded', 'failed')),
            failure text,
            chunks integer,
            received_at timestamptz NOT NULL DEFAULT now(),
            embedded_at timestamptz,
            indexed_at timestamptz,
            live_at timestamptz,
            PRIMARY KEY (tenant, document_id, version),
            FOREIGN KEY (tenant, document_id) REFERENCES documents,
            CHECK ((kind = 'turn') = (conversation_id IS NOT NULL AND role IS NOT NULL))
        );
        CREATE INDEX versions_pending ON versions (tenant, seq) WHERE status IN ('received', 'embedded', 'indexed');
        CREATE INDEX versions_failed ON versions (tenant, seq) WHERE status = 'failed';
        CREATE INDEX versions_turns ON versions (tenant, conversation_id, seq) WHERE kind = 'turn';

        CREATE TABLE chunks (
            tenant text NOT NULL,
            document_id text NOT NULL,
            version integer NOT NULL,
            chunk integer NOT NULL,
            conversation_id text,
            section text NOT NULL,
            start_char integer NOT NULL,
            end_char integer NOT NULL,
            body text NOT NULL,
            embedding bytea NOT NULL,                     -- float32, little endian
            PRIMARY KEY (tenant, document_id, version, chunk),
            FOREIGN KEY (tenant, document_id, version) REFERENCES versions
        );
        CREATE INDEX chunks_body ON chunks USING gin (to_tsvector('simple', body));

        -- Acknowledged, and not yet to be found through the index.
        CREATE VIEW pending_versions AS
            SELECT tenant, document_id, version, seq, kind, conversation_id, title, content,
                status, failure, received_at
            FROM versions WHERE status IN ('received', 'embedded', 'indexed');

        -- What a search may answer with.
        CREATE VIEW live_chunks AS
            SELECT k.tenant, k.document_id, k.version, k.chunk, k.conversation_id, k.section, k.body, v.title, v.kind
            FROM chunks k
            JOIN documents d ON d.tenant = k.tenant AND d.document_id = k.document_id
                AND d.live_version = k.version AND d.deleted_version < k.version
            JOIN versions v ON v.tenant = k.tenant AND v.document_id = k.document_id AND v.version = k.version;

        -- Counts what became retrievable or ceased to be, in several rows a tenant: with one, all
        -- documents of a tenant would go live one quorum commit after the other.
        CREATE TABLE generations (
            tenant text NOT NULL,
            shard smallint NOT NULL,
            generation bigint NOT NULL,
            PRIMARY KEY (tenant, shard)
        );

        CREATE TABLE conversations (
            tenant text NOT NULL,
            conversation_id text NOT NULL,
            generation bigint NOT NULL,
            PRIMARY KEY (tenant, conversation_id)
        );

        CREATE TABLE idempotency (
            tenant text NOT NULL,
            key text NOT NULL,
            request_sha256 bytea NOT NULL,
            response jsonb,
            created_at timestamptz NOT NULL DEFAULT now(),
            replays integer NOT NULL DEFAULT 0,
            PRIMARY KEY (tenant, key)
        );
        CREATE INDEX idempotency_age ON idempotency (created_at);

        -- Written by every replica's readiness check: proof that a commit reaches the quorum.
        CREATE TABLE replicas (
            replica text PRIMARY KEY,
            seen_at timestamptz NOT NULL
        );
    """)


def downgrade() -> None:
    execute("DROP VIEW live_chunks, pending_versions")
    execute("DROP TABLE replicas, idempotency, conversations, generations, chunks, versions, documents")
