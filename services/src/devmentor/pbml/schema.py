"""Brings the database to the schema that this release needs, or back."""

from dataclasses import dataclass

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine
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


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "devmentor.pbml:migrations")
    return config


def head() -> str | None:
    """The newest revision of this release."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def migrate(conninfo: str, target: str = "head") -> Migration:
    """Apply (or, for a target behind, take back) revisions in one transaction, one process at a time.

    A database that is ahead of this release is left alone when the target is `head`: revisions only
    add to the schema until the release after has dropped its use, so the older release still works.
    """
    try:
        return _migrate(conninfo, target)
    except DBAPIError as error:
        raise MigrationFailed(str(error.orig).strip()) from error
    except (SQLAlchemyError, CommandError, psycopg.Error) as error:
        raise MigrationFailed(str(error).strip()) from error


def _migrate(conninfo: str, target: str) -> Migration:
    config = _config()
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
