"""devmentor-pbml: serve, worker, migrate, ensure-collection, prepare."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from devmentor.common import logs
from devmentor.common.settings import load
from devmentor.pbml.settings import Settings

# The clients of Qdrant and the migration tool take seconds of processor time to load: each command
# imports what it needs and no more.


def main() -> None:
    """Exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 the collection is not what is declared."""
    arguments = _parser().parse_args()
    settings = load(Settings, arguments.env_file)
    logs.configure("pbml-worker" if arguments.command == "worker" else "pbml", settings.log_level)
    command = arguments.command
    if command == "serve":
        from devmentor.common import server
        from devmentor.pbml import api

        server.run(api.application(settings), settings)
        return
    if command == "worker":
        from devmentor.common import server
        from devmentor.pbml import worker

        app, running = worker.application(settings)
        server.run(app, settings.model_copy(update={"port": settings.worker_port}), alive=running.alive)
        return
    done: dict[str, Any] = {}
    if command in ("migrate", "prepare"):
        done["schema"] = _migrate(settings, arguments.to)
        if arguments.to == "head":
            done["indexes"] = _ensure_indexes(settings)
    if command in ("ensure-collection", "prepare"):
        done["collection"] = _ensure_collection(settings)
    changed = any(part["changed"] for part in done.values())
    sys.stdout.write(json.dumps({"changed": changed, **done}) + "\n")


def _migrate(settings: Settings, target: str) -> dict[str, Any]:
    from devmentor.pbml import schema

    try:
        done = schema.migrate(settings.conninfo(session=True, application="pbml-migrate"), target)
    except schema.MigrationFailed as error:
        _fail(1, f"schema: {error}")
    return {"changed": done.changed, "before": done.before, "after": done.after}


def _ensure_indexes(settings: Settings) -> dict[str, Any]:
    from devmentor.pbml import indexes, schema

    try:
        done = indexes.ensure(settings.conninfo(session=True, application="pbml-migrate"))
    except schema.MigrationFailed as error:
        _fail(1, str(error))
    return {"changed": bool(done), "done": done}


def _ensure_collection(settings: Settings) -> dict[str, Any]:
    from devmentor.pbml.index import CollectionDrift, Index, IndexUnavailable

    async def ensure() -> list[str]:
        index = Index(settings)
        try:
            return await index.ensure()
        finally:
            await index.close()

    try:
        done = asyncio.run(ensure())
    except CollectionDrift as drift:
        _fail(3, str(drift))
    except IndexUnavailable as error:
        _fail(1, f"Qdrant: {error}")
    return {"changed": bool(done), "done": done}


def _fail(status: int, message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devmentor-pbml", description="Settings come from PBML_* variables.")
    parser.add_argument("--env-file", type=Path, help="read variables from here too; the environment wins")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the API")
    commands.add_parser("worker", help="run the pipeline for queued versions")
    migrate = commands.add_parser("migrate", help="bring the database's schema to a revision")
    migrate.add_argument("--to", default="head", help="a revision, or base for none (default: %(default)s)")
    commands.add_parser("ensure-collection", help="create the Qdrant collection if missing, compare it otherwise")
    commands.add_parser("prepare", help="migrate to head and ensure-collection").set_defaults(to="head")
    return parser


if __name__ == "__main__":
    main()
