"""devmentor-pbml: serve, worker, migrate, ensure-collection."""

import argparse
import asyncio
import json
import sys

from pydantic import ValidationError

from devmentor.common import logs
from devmentor.pbml.settings import Settings

# The clients of Qdrant and the migration tool take seconds of processor time to load: each command
# imports what it needs and no more.


def main() -> None:
    """Exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 the collection is not what is declared."""
    arguments = _parser().parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        for finding in error.errors(include_url=False, include_input=False, include_context=False):
            name = "_".join(str(part) for part in finding["loc"]).upper()
            sys.stderr.write(f"PBML_{name}: {finding['msg']}\n" if name else f"{finding['msg']}\n")
        sys.exit(2)
    logs.configure("pbml" if arguments.command != "worker" else "pbml-worker", settings.log_level)
    if arguments.command == "serve":
        from devmentor.common import server
        from devmentor.pbml import api

        server.run(api.application(settings), settings)
    elif arguments.command == "worker":
        from devmentor.common import server
        from devmentor.pbml import worker

        app, running = worker.application(settings)
        server.run(app, settings.model_copy(update={"port": settings.worker_port}), alive=running.alive)
    elif arguments.command == "migrate":
        from devmentor.pbml import schema

        done = schema.migrate(settings.conninfo(session=True, application="pbml-migrate"), arguments.to)
        _say({"changed": done.changed, "before": done.before, "after": done.after})
    else:
        sys.exit(asyncio.run(_ensure_collection(settings)))


async def _ensure_collection(settings: Settings) -> int:
    from devmentor.pbml.index import CollectionDrift, Index, IndexUnavailable

    index = Index(settings)
    try:
        done = await index.ensure()
    except CollectionDrift as drift:
        sys.stderr.write(f"{drift}\n")
        return 3
    except IndexUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        await index.close()
    _say({"changed": bool(done), "done": done})
    return 0


def _say(result: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devmentor-pbml", description="Settings come from PBML_* variables.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the API")
    commands.add_parser("worker", help="run the pipeline for queued versions")
    migrate = commands.add_parser("migrate", help="bring the database's schema to a revision")
    migrate.add_argument("--to", default="head", help="a revision, or base for none (default: %(default)s)")
    commands.add_parser("ensure-collection", help="create the Qdrant collection if missing, compare it otherwise")
    return parser


if __name__ == "__main__":
    main()
