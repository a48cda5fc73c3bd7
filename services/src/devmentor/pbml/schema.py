"""PBML's schema: what of `common.schema` is its own."""

from functools import partial

from devmentor.common import schema
from devmentor.common.schema import MigrationFailed

__all__ = ["MigrationFailed", "head", "migrate"]

LOCATION = "devmentor.pbml:migrations"

head = partial(schema.head, LOCATION)


def migrate(conninfo: str, target: str = "head") -> schema.Migration:
    """As `common.schema.migrate`, with PBML's revisions."""
    return schema.migrate(conninfo, LOCATION, target)
