#!/usr/bin/python3
"""Start Qdrant without ever founding a second cluster: STORAGE BINARY [ARGUMENT...].

A peer that has been a member starts as that. One that has not needs QDRANT_START, which the role qdrant sets: the URI
of a peer to join by, or `found` on the one host that begins a new cluster. Without it Qdrant would found a cluster of
its own, for example after its disk was lost.
"""

import json
import os
import sys
from pathlib import Path


def member(storage: Path) -> bool:
    """Whether a Raft state of term 1 or more is there: the peer has joined, and --bootstrap would be ignored."""
    try:
        state = json.loads((storage / "raft_state.json").read_text())
    except FileNotFoundError:
        return False
    return bool(state["state"]["hard_state"]["term"] > 0)


def arguments(is_member: bool, start: str) -> list[str]:
    """What to add to the command line. Raises ValueError where nothing may be started."""
    if is_member or start == "found":
        return []
    if start.startswith("https://"):
        return ["--bootstrap", start]
    raise ValueError(
        "this host has no Raft state and has not been told how to begin. It was never deployed, or its storage is "
        "gone. Run playbooks/site.yml on the qdrant group: it has this host join the cluster."
    )


def main() -> None:
    """Become Qdrant."""
    storage, binary, *given = sys.argv[1:]
    try:
        added = arguments(member(Path(storage)), os.environ.get("QDRANT_START", ""))
    except ValueError as error:
        sys.exit(f"qdrant-start: {error}")
    os.execv(binary, [binary, *given, *added])  # noqa: S606 - the process that systemd watches must be Qdrant itself


if __name__ == "__main__":
    main()
