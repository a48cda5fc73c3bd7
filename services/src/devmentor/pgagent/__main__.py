"""devmentor-pgagent: serve, guard."""

import argparse
import logging
import sys
from pathlib import Path

# `guard` runs before every start of PostgreSQL: it imports no more than it needs.


def main() -> None:
    """Exit status: 0 done, 1 refused, 2 wrong usage or settings."""
    arguments = _parser().parse_args()
    if arguments.command == "guard":
        from devmentor.pgagent.guard import guard

        sys.exit(guard(arguments.env_file))
    from devmentor.common import logs, server
    from devmentor.common.settings import load
    from devmentor.pgagent.app import application
    from devmentor.pgagent.settings import Settings

    settings = load(Settings, arguments.env_file)
    logs.configure("pgagent", settings.log_level)
    logging.getLogger("devmentor.access").setLevel(logging.WARNING)  # the agents ask each other all the time
    app, duties = application(settings)
    server.run(app, settings, alive=lambda: duties.alive)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devmentor-pgagent", description="Settings come from PGAGENT_* variables.")
    parser.add_argument("--env-file", type=Path, help="read variables from here too; the environment wins")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the agent")
    guard = commands.add_parser("guard", help="judge whether PostgreSQL may start on this host (ExecStartPre)")
    guard.add_argument("--env-file", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
