"""Called by alembic for every command; devmentor.pbml.schema gives it the open connection."""

from alembic import context
from sqlalchemy import text

# Any number that no other program uses for an advisory lock in this database.
_LOCK = 0x70626D6C

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
with context.begin_transaction():
    # Hosts that are deployed at the same moment wait here; the second one then finds nothing to do.
    context.get_bind().execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    context.run_migrations()
