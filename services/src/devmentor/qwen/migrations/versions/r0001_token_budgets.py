"""Token budgets: a row for each limit of each key."""

from devmentor.common.schema import execute

revision = "0001"
down_revision = None


def upgrade() -> None:
    execute("""
        CREATE TABLE token_budgets (
            key_sha256 bytea NOT NULL CHECK (length(key_sha256) = 32),
            period_s integer NOT NULL CHECK (period_s > 0),
            budget_window bigint NOT NULL,                -- periods since 1970, by this server's clock
            taken bigint NOT NULL CHECK (taken >= 0),     -- tokens leased or spent of this window
            PRIMARY KEY (key_sha256, period_s)
        ) WITH (fillfactor = 50);                         -- a row's next version stays on its page
    """)


def downgrade() -> None:
    execute("DROP TABLE token_budgets")
