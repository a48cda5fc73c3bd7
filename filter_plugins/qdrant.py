"""How a Qdrant peer starts: the decision that must never found a second cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

FOUND = "found"


def qdrant_start(
    facts: Mapping[str, Mapping[str, Any] | None], host: str, uris: Mapping[str, str], found_without: bool = False
) -> str:
    """How `host` starts: '' as the member it is, 'found' a new cluster, else the URI of the peer to join by.

    facts: for each host of the group, in order, the result of qdrant_peer, or None for a host that is not in the play.
    uris: each host's peer-to-peer URI. found_without: found a cluster although some hosts were not asked.

    A new cluster is founded only where every host of the group was asked and none has been a member: a host that was
    not asked may hold the data. Raises AnsibleFilterError otherwise.
    """
    asked = {name: known for name, known in facts.items() if known is not None}
    if host in asked and asked[host]["member"]:
        return ""
    members = [name for name, known in asked.items() if known["member"]]
    if members:
        running = [name for name in members if asked[name]["running"]]
        return uris[(running or members)[0]]
    working = {_authority(url) for known in asked.values() for url in known["working"]}
    for name, uri in uris.items():
        # Not in the play, but seen at work by a host that is.
        if name != host and _authority(uri) in working:
            return uri
    absent = [name for name in facts if name not in asked]
    if absent and not found_without:
        raise AnsibleFilterError(
            f"{host}: no host of this play is a member of a Qdrant cluster, and {', '.join(absent)} (group qdrant) "
            "could not be asked: founding a cluster now could make a second one. Run the play on the whole group, or, "
            "for a first deployment without them only, set qdrant_found_without_all: true."
        )
    founder = next(iter(asked))
    return FOUND if host == founder else uris[founder]


def _authority(url: str) -> str:
    """The host part of a URL; ports differ between the API and peer-to-peer."""
    return url.split("://", 1)[1].rsplit(":", 1)[0]


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"qdrant_start": qdrant_start}
