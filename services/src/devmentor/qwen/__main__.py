"""devmentor-qwen: one instance of the LLM tier, configured by QWEN_* variables."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from devmentor.common import logs
from devmentor.common.auth import TenantsFileError
from devmentor.common.settings import load
from devmentor.qwen.settings import QwenSettings


def main() -> None:
    """Serve until SIGTERM, or say which setting is wrong; `prepare`: what this release needs of other services."""
    parser = argparse.ArgumentParser(prog="devmentor-qwen", description="Settings come from QWEN_* variables.")
    parser.add_argument("--env-file", type=Path, help="read variables from here too; the environment wins")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="run the API (the default)")
    commands.add_parser("prepare", help="the database's schema and the vector collection that these settings need")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        _prepare(load(QwenSettings, arguments.env_file))
    else:
        _serve(arguments.env_file)


def _serve(env_file: Path | None) -> None:
    from devmentor.common import server
    from devmentor.qwen.app import build

    try:
        settings = QwenSettings(_env_file=env_file)  # type: ignore[call-arg]  # filled from the environment
    except ValidationError as error:
        sys.exit(f"devmentor-qwen: {error}")
    logs.configure("qwen", settings.log_level)
    try:
        app = build(settings)
    except (OSError, TenantsFileError) as error:
        sys.exit(f"devmentor-qwen: {error}")
    server.run(app, settings)


def _prepare(settings: QwenSettings) -> None:
    logs.configure("qwen", settings.log_level)
    done: dict[str, Any] = {}
    if settings.database is not None:
        done["schema"] = _migrate(settings)
    if settings.semantic_model is not None:
        done["collection"] = _ensure_collection(settings)
    sys.stdout.write(json.dumps({"changed": any(part["changed"] for part in done.values()), **done}) + "\n")


def _migrate(settings: QwenSettings) -> dict[str, Any]:
    from devmentor.common import schema
    from devmentor.qwen.budget_store import conninfo

    try:
        done = schema.migrate(conninfo(settings, session=True), "devmentor.qwen:migrations")
    except schema.MigrationFailed as error:
        sys.exit(f"devmentor-qwen: schema: {error}")
    return {"changed": done.changed, "before": done.before, "after": done.after}


def _ensure_collection(settings: QwenSettings) -> dict[str, Any]:
    from devmentor.qwen.semantic_store import SemanticStore, SemanticUnavailableError

    async def ensure() -> list[str]:
        store = SemanticStore(settings)
        try:
            return await store.ensure(settings.semantic_dimensions)
        finally:
            await store.close()

    try:
        done = asyncio.run(ensure())
    except SemanticUnavailableError as error:
        sys.exit(f"devmentor-qwen: Qdrant: {error}")
    return {"changed": bool(done), "done": done}


if __name__ == "__main__":
    main()
