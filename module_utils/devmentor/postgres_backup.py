"""What a pgBackRest repository still needs, from `pgbackrest info --output=json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .postgres import PostgresError

CREATE, CHECK, BACKUP = "stanza-create", "check", "backup"


def plan_stanza(info: Sequence[Mapping[str, Any]], stanza: str, system_identifier: str) -> list[tuple[str, str]]:
    """Commands to run, each with the reason, so that the stanza exists and holds one backup of this database.

    Refuses a stanza of another database: making room for this one would orphan the only backups of that one.
    """
    entry = next((item for item in info if item.get("name") == stanza), None)
    databases = list(entry.get("db") or []) if entry else []
    if not databases:
        return [
            (CREATE, f"the repository has no stanza {stanza}"),
            (CHECK, "the stanza is new"),
            (BACKUP, "there is no backup"),
        ]
    current = max(databases, key=lambda item: int(item.get("id") or 0))
    if str(current.get("system-id")) != system_identifier:
        raise PostgresError(
            f"The stanza {stanza} holds the backups of another database (system identifier {current.get('system-id')}, "
            f"this server's is {system_identifier}). Restore from it, or name another pgbackrest_repo_path."
        )
    backups = [
        item
        for item in (entry or {}).get("backup") or []
        if (item.get("database") or {}).get("id") == current.get("id") and not item.get("error")
    ]
    return [] if backups else [(CHECK, "there is no backup"), (BACKUP, "there is no backup")]
