"""Called by alembic for every command; devmentor.common.schema gives it the open connection."""

from devmentor.common.schema import run_revisions

run_revisions(0x70626D6C)
