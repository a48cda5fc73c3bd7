"""How often a version failed by its own fault, apart from the job's attempts, which count waits for others too."""

from devmentor.pbml.migrations.run import execute

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Waiting behind a long transaction, it would hold up every statement on the ledger: rather fail and be run again.
    execute("SET LOCAL lock_timeout = '3s'")
    execute("ALTER TABLE versions ADD COLUMN failed_runs integer NOT NULL DEFAULT 0")


def downgrade() -> None:
    execute("SET LOCAL lock_timeout = '3s'")
    execute("ALTER TABLE versions DROP COLUMN failed_runs")
