"""The change log that replicas' local states follow, and what they have confirmed."""

from devmentor.pbml.migrations.run import execute

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # Waiting behind a long transaction, it would hold up every statement on the ledger: rather fail and be run again.
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        -- What a transaction changed, not how: a reader looks up what is there now. Which rows it has not seen yet,
        -- snapshots tell (state/source.py); numbers of a sequence would become visible out of order.
        CREATE TABLE changes (
            xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
            at timestamptz NOT NULL DEFAULT now(),
            tenant text NOT NULL,
            document_id text,                             -- NULL: the pins of conversation_id
            conversation_id text,
            seq bigint                                    -- of a version that was accepted
        );
        CREATE INDEX changes_xid ON changes (xid);

        -- One row. What has another id is another ledger, whatever its transactions' numbers.
        CREATE TABLE change_log (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            pruned xid8 NOT NULL DEFAULT '0',             -- changes of older transactions may be gone
            newest_pruned xid8 NOT NULL DEFAULT '0'
        );
        INSERT INTO change_log DEFAULT VALUES;

        CREATE TABLE replica_states (
            replica text PRIMARY KEY,
            lineage text NOT NULL,
            confirmed xid8 NOT NULL,                      -- all older transactions are in its state
            position xid8,                                -- NULL: not to be compared now
            digests jsonb NOT NULL DEFAULT '{}',          -- by tenant
            seen_at timestamptz NOT NULL DEFAULT now()
        );

        CREATE FUNCTION note_version() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO changes (tenant, document_id, seq) VALUES (NEW.tenant, NEW.document_id, NEW.seq);
            RETURN NULL;
        END $$;
        CREATE FUNCTION note_document() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO changes (tenant, document_id) VALUES (NEW.tenant, NEW.document_id);
            RETURN NULL;
        END $$;
        CREATE FUNCTION note_pin() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO changes (tenant, conversation_id)
                VALUES (coalesce(NEW.tenant, OLD.tenant), coalesce(NEW.conversation_id, OLD.conversation_id));
            RETURN NULL;
        END $$;

        CREATE TRIGGER note_accepted AFTER INSERT ON versions FOR EACH ROW EXECUTE FUNCTION note_version();
        CREATE TRIGGER note_failed AFTER UPDATE OF status ON versions FOR EACH ROW
            WHEN ((OLD.status = 'failed') <> (NEW.status = 'failed')) EXECUTE FUNCTION note_document();
        CREATE TRIGGER note_served AFTER UPDATE OF live_version, deleted_version ON documents FOR EACH ROW
            WHEN (OLD.live_version <> NEW.live_version OR OLD.deleted_version <> NEW.deleted_version)
            EXECUTE FUNCTION note_document();
        CREATE TRIGGER note_pinned AFTER INSERT OR UPDATE OR DELETE ON pins FOR EACH ROW EXECUTE FUNCTION note_pin();
    """)


def downgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        DROP TRIGGER note_pinned ON pins;
        DROP TRIGGER note_served ON documents;
        DROP TRIGGER note_failed ON versions;
        DROP TRIGGER note_accepted ON versions;
        DROP FUNCTION note_pin, note_document, note_version;
        DROP TABLE replica_states, change_log, changes;
    """)
