"""Brings a service's schema in the database to what its release needs, or back. Revisions are alembic's."""

from dataclasses import dataclass

import psycopg
from alembic import command, context, op
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool


class MigrationFailed(Exception):
    """Nothing was changed; the message says why."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What a run did."""

    before: str | None
    after: str | None

    @property
    def changed(self) -> bool:
        """Whether any revision was applied."""
        return self.before != self.after


def _config(location: str) -> Config:
    config = Config()
    config.set_main_option("script_location", location)
    return config


def head(location: str) -> str | None:
    """The newest revision of this release; `location` is "package:directory" of the revisions."""
    return ScriptDirectory.from_config(_config(location)).get_current_head()


def execute(sql: str) -> None:
    """For revisions. Run a script of statements as it stands: no parameters, so that `%` and `:` mean themselves."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    with connection.cursor() as cursor:
        cursor.execute(sql)


def run_revisions(lock: int) -> None:
    """For env.py. `lock` is any number that no other program uses for an advisory lock in this database."""
    context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
    with context.begin_transaction():
        # Hosts that are deployed at the same moment wait here; the second one then finds nothing to do.
        context.get_bind().execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
        context.run_migrations()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def migrate(conninfo: str, location: str, target: str = "head") -> Migration:
    """Apply (or, for a target behind, take back) revisions in one transaction, one process at a time.

    A database that is ahead of this release is left alone when the target is `head`: revisions only
    add to the schema until the release after has dropped its use, so the older release still works.
    """
    try:
        return _migrate(conninfo, location, target)
    except DBAPIError as error:
        raise MigrationFailed(str(error.orig).strip()) from error
    except (SQLAlchemyError, CommandError, psycopg.Error) as error:
        raise MigrationFailed(str(error).strip()) from error


def _migrate(conninfo: str, location: str, target: str) -> Migration:
    config = _config(location)
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=NullPool)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.connect() as connection:
        before = _revision(connection)
        connection.rollback()
        config.attributes["connection"] = connection
        if before is not None and before not in known:
            if target != "head":
                raise MigrationFailed(f"revision {before} is not of this release; go back with the release that has it")
            return Migration(before, before)
        back = target == "base" or (before is not None and target in known and target < before)
        (command.downgrade if back else command.upgrade)(config, target)
        connection.commit()
        return Migration(before, _revision(connection))
