"""The job queue's tables, as the installed procrastinate wants them."""

from pathlib import Path

from procrastinate.schema import SchemaManager

from devmentor.pbml.migrations.run import execute

revision = "0001"
down_revision = None


def upgrade() -> None:
    execute(SchemaManager.get_schema())
    # Its whole schema, not its history of migrations: one of those uses an enum value in the
    # transaction that adds it. The comment tells the revision of a later procrastinate where to go on from.
    newest = max(script.stem for script in Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    execute(f"COMMENT ON TABLE procrastinate_jobs IS 'includes procrastinate migration {newest}'")
    # Workers poll. A transaction that notifies takes a database-wide lock until its commit is on the
    # quorum, so with this trigger all ingests of the platform would commit one after the other.
    execute("ALTER TABLE procrastinate_jobs DISABLE TRIGGER procrastinate_jobs_notify_queue_job_inserted_v1")


def downgrade() -> None:
    execute("""
        DO $$
        DECLARE
            found record;
        BEGIN
            FOR found IN SELECT format('%I', tablename) AS name FROM pg_tables
                WHERE schemaname = current_schema() AND tablename LIKE 'procrastinate\\_%'
            LOOP EXECUTE format('DROP TABLE %s CASCADE', found.name); END LOOP;
            FOR found IN SELECT p.oid::regprocedure AS name FROM pg_proc p
                WHERE p.pronamespace = current_schema()::regnamespace AND p.proname LIKE 'procrastinate\\_%'
            LOOP EXECUTE format('DROP FUNCTION %s CASCADE', found.name); END LOOP;
            FOR found IN SELECT t.oid::regtype AS name FROM pg_type t
                WHERE t.typnamespace = current_schema()::regnamespace AND t.typname LIKE 'procrastinate\\_%'
                AND t.typtype IN ('e', 'c')
            LOOP EXECUTE format('DROP TYPE %s CASCADE', found.name); END LOOP;
        END $$
    """)
