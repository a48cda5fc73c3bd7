"""A window's own limit, so that a limit that is lowered makes no debt of what was allowed before."""

from devmentor.common.schema import execute

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Empty until the first write of a release that knows it: then the limit of the request counts, as before.
    execute("ALTER TABLE token_budgets ADD COLUMN window_limit bigint CHECK (window_limit > 0)")


def downgrade() -> None:
    execute("ALTER TABLE token_budgets DROP COLUMN window_limit")
