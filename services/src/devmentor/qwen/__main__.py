"""devmentor-qwen: one instance of the LLM tier, configured by QWEN_* variables."""

import argparse
import json
import sys
from pathlib import Path

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
    commands.add_parser("prepare", help="bring the database's schema to what this release needs")
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
    from devmentor.common import schema
    from devmentor.qwen.budget_store import conninfo

    logs.configure("qwen", settings.log_level)
    try:
        done = schema.migrate(conninfo(settings, session=True), "devmentor.qwen:migrations")
    except (ValueError, schema.MigrationFailed) as error:
        sys.exit(f"devmentor-qwen: schema: {error}")
    sys.stdout.write(json.dumps({"changed": done.changed, "before": done.before, "after": done.after}) + "\n")


if __name__ == "__main__":
    main()
