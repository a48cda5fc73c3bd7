"""What each tenant stores, counted with every version; retention's place among the pieces of maintenance."""

from devmentor.pbml.migrations.run import execute

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # The trigger waits for everybody who writes versions, and they for it: rather fail and be run again.
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        -- Of newest versions that were not deleted. A tenant has as many rows as transactions ever counted at the same
        -- moment; one alone may be negative, their sum is what is stored.
        CREATE TABLE usage (
            tenant text NOT NULL,
            slot bigint GENERATED ALWAYS AS IDENTITY,
            bytes bigint NOT NULL,
            documents bigint NOT NULL,
            turns bigint NOT NULL,
            PRIMARY KEY (tenant, slot)
        ) WITH (fillfactor = 50);

        CREATE VIEW tenant_usage AS
            SELECT tenant, sum(bytes)::bigint AS bytes, sum(documents)::bigint AS documents, sum(turns)::bigint AS turns
            FROM usage GROUP BY tenant;

        -- Takes a row that nobody holds, or a new one: nobody waits for another's commit, so nothing can deadlock.
        CREATE FUNCTION add_usage(of_tenant text, more_bytes bigint, more_documents bigint, more_turns bigint)
        RETURNS void LANGUAGE plpgsql AS $$
        DECLARE
            free bigint;
        BEGIN
            SELECT u.slot INTO free FROM usage u WHERE u.tenant = of_tenant
                ORDER BY u.slot LIMIT 1 FOR UPDATE SKIP LOCKED;
            IF FOUND THEN
                UPDATE usage u SET bytes = u.bytes + more_bytes, documents = u.documents + more_documents,
                    turns = u.turns + more_turns WHERE u.tenant = of_tenant AND u.slot = free;
            ELSE
                INSERT INTO usage (tenant, bytes, documents, turns)
                    VALUES (of_tenant, more_bytes, more_documents, more_turns);
            END IF;
        END $$;

        -- Versions are written under their document's lock, with rising numbers, and keep kind and size for good.
        CREATE FUNCTION count_versions() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM add_usage(c.tenant, c.bytes, c.documents, c.turns) FROM (
                SELECT a.tenant,
                    sum(a.content_bytes - coalesce(o.content_bytes, 0))::bigint AS bytes,
                    sum((a.kind = 'document')::int - coalesce((o.kind = 'document')::int, 0))::bigint AS documents,
                    sum((a.kind = 'turn')::int - coalesce((o.kind = 'turn')::int, 0))::bigint AS turns
                FROM added a LEFT JOIN LATERAL (
                    SELECT v.kind, v.content_bytes FROM versions v
                    WHERE v.tenant = a.tenant AND v.document_id = a.document_id AND v.version < a.version
                    ORDER BY v.version DESC LIMIT 1
                ) o ON true
                GROUP BY a.tenant
            ) c WHERE (c.bytes, c.documents, c.turns) <> (0, 0, 0);
            RETURN NULL;
        END $$;

        -- Counts what older releases write too. From here to the commit nobody else writes a version.
        CREATE TRIGGER versions_counted AFTER INSERT ON versions REFERENCING NEW TABLE AS added
            FOR EACH STATEMENT EXECUTE FUNCTION count_versions();
    """)
    execute("""
        -- Versions up to here were there before the trigger; counting.py counts them, page by page.
        INSERT INTO maintenance (task, state)
            SELECT 'usage', jsonb_build_object('up_to', coalesce(max(seq), 0), 'counted', max(seq) IS NULL)
            FROM versions;
        INSERT INTO maintenance (task) VALUES ('retention');
    """)


def downgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("""
        DROP TRIGGER versions_counted ON versions;
        DROP FUNCTION count_versions;
        DROP FUNCTION add_usage;
        DROP VIEW tenant_usage;
        DROP TABLE usage;
        DELETE FROM maintenance WHERE task IN ('usage', 'retention');
        DROP INDEX IF EXISTS versions_aged;
    """)
