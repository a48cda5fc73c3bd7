"""devmentor-pbml: serve, worker, and the operator's commands."""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

from devmentor.common import logs
from devmentor.common.settings import load
from devmentor.pbml.settings import Settings

# The clients of Qdrant and the migration tool take seconds of processor time to load: each command
# imports what it needs and no more.


Command = Coroutine[Any, Any, dict[str, Any]]


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
    if command in ("migrate", "prepare", "ensure-collection"):
        done: dict[str, Any] = {}
        if command != "ensure-collection":
            done["schema"] = _migrate(settings, arguments.to)
            if arguments.to == "head":
                done["indexes"] = _ensure_indexes(settings)
                done["usage"] = _count_usage(settings)
        if command != "migrate":
            done["collection"] = _run(lambda commands: commands.ensure_collection(settings))
        _print({"changed": any(part["changed"] for part in done.values()), **done})
        return
    if command == "openapi":
        from devmentor.pbml import api

        sys.stdout.write(json.dumps(api.openapi(), indent=1) + "\n")
        return
    if command == "spool" and arguments.action == "export":
        _export_spool(settings)
        return
    _print(_run(lambda commands: _stored(commands, settings, arguments)))


def _stored(commands: Any, settings: Settings, arguments: argparse.Namespace) -> Command:
    """The command on what is stored that was asked for."""
    command: Command
    match arguments.command:
        case "rebuild" if arguments.status:
            command = commands.rebuild_status(settings)
        case "rebuild":
            if arguments.recreate not in (None, settings.collection):
                _fail(2, f"--recreate {arguments.recreate}: the collection is {settings.collection}")
            command = commands.rebuild(settings, restart=arguments.restart, recreate=arguments.recreate is not None)
        case "retry":
            if arguments.document is not None and arguments.tenant is None:
                _fail(2, "--document needs --tenant: names of documents are a tenant's own")
            command = commands.retry(settings, arguments.tenant, arguments.document)
        case "summaries":
            command = _summaries(settings, arguments)
        case "state":
            command = commands.state(settings)
        case "delete-tenant":
            command = commands.delete_tenant(settings, arguments.tenant)
        case "retention":
            command = commands.retention(settings, dry_run=arguments.dry_run)
        case "spool":
            from devmentor.pbml.spool import commands as spool

            command = spool.replay(settings) if arguments.action == "replay" else spool.status(settings)
        case _:
            raise AssertionError(arguments.command)
    return command


def _export_spool(settings: Settings) -> None:
    from devmentor.pbml.commands import CommandFailed
    from devmentor.pbml.spool import commands

    try:
        for line in commands.export(settings):
            sys.stdout.write(f"{line}\n")
    except CommandFailed as error:
        _fail(1, str(error))


def _summaries(settings: Settings, arguments: argparse.Namespace) -> Command:
    from devmentor.pbml.summaries import commands

    tenant, conversation = arguments.tenant, arguments.conversation
    if tenant is None and (conversation is not None or arguments.rebuild):
        _fail(2, "--conversation and --rebuild need --tenant: names of conversations are a tenant's own")
    if arguments.rebuild:
        return commands.rebuild(settings, tenant, conversation)
    if arguments.retry:
        return commands.retry(settings, tenant, conversation)
    return commands.status(settings)


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


def _count_usage(settings: Settings) -> dict[str, Any]:
    from devmentor.pbml import counting, schema

    try:
        done = counting.count_usage(settings.conninfo(session=True, application="pbml-migrate"))
    except schema.MigrationFailed as error:
        _fail(1, str(error))
    return {"changed": bool(done), "done": done}


def _run(make: Callable[[Any], Command]) -> dict[str, Any]:
    """The result of a coroutine of devmentor.pbml.commands; what is away or wrong ends the process."""
    from devmentor.pbml import commands
    from devmentor.pbml.db import DatabaseUnavailable, OutcomeUnknown
    from devmentor.pbml.index import CollectionDrift, IndexUnavailable

    try:
        return asyncio.run(make(commands))
    except CollectionDrift as drift:
        _fail(3, f"{drift}; 'rebuild --recreate NAME' makes it anew from PostgreSQL")
    except IndexUnavailable as error:
        _fail(1, f"Qdrant: {error}")
    except (DatabaseUnavailable, OutcomeUnknown) as error:
        _fail(1, f"PostgreSQL: {error}")
    except commands.CommandFailed as error:
        _fail(1, str(error))


def _print(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")


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
    commands.add_parser("openapi", help="the API's OpenAPI document")
    rebuild = commands.add_parser("rebuild", help="write the index again from PostgreSQL; goes on where one stopped")
    rebuild.add_argument("--status", action="store_true", help="say how far it is, and do nothing")
    rebuild.add_argument("--restart", action="store_true", help="from the beginning, also where one is half done")
    rebuild.add_argument("--recreate", metavar="COLLECTION", help="drop this collection first and make it as declared")
    retry = commands.add_parser("retry", help="queue versions again that were given up: all, a tenant's or one")
    retry.add_argument("--tenant")
    retry.add_argument("--document")
    spool = commands.add_parser("spool", help="this host's writes that wait for PostgreSQL")
    spool.add_argument(
        "action", choices=("status", "replay", "export"), help="replay: with pbml.service stopped, the parked ones too"
    )
    summaries = commands.add_parser("summaries", help="how far summaries of older turns are, and which were given up")
    what = summaries.add_mutually_exclusive_group()
    what.add_argument("--retry", action="store_true", help="take up again what was given up")
    what.add_argument("--rebuild", action="store_true", help="drop them, to be made anew")
    summaries.add_argument("--tenant")
    summaries.add_argument("--conversation")
    commands.add_parser("state", help="this host's local state: where it stands, its digests and checkpoints")
    forget = commands.add_parser("delete-tenant", help="delete everything of a tenant that has no key any more")
    forget.add_argument("tenant", help="its name: nothing asks again")
    expire = commands.add_parser("retention", help="remove what is older than its tenant keeps, as the workers do")
    expire.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    commands.add_parser("ensure-collection", help="create the Qdrant collection if missing, compare it otherwise")
    commands.add_parser("prepare", help="migrate to head and ensure-collection").set_defaults(to="head")
    return parser


if __name__ == "__main__":
    main()
