"""A host that cannot reach PostgreSQL takes writes into its spool and answers from its local state."""

import uuid

import pytest
from scenario import until

testinfra_hosts = ["m1"]
CUT = (
    "nft add table inet cut && nft add chain inet cut out '{ type filter hook output priority 0; }'"
    " && nft add rule inet cut out tcp dport 6432 reject with tcp reset"
)


@pytest.fixture
def cut(host):
    """No pooler can be reached from the host, while this is in force."""
    yield lambda: host.check_output(CUT)
    host.run("nft delete table inet cut")


def test_nothing_is_lost_and_what_is_known_is_told_while_postgresql_is_away(host, ask, cut):
    run = uuid.uuid4().hex[:8]
    known, new = f"known-{run}", f"new-{run}"
    accepted = ask("POST", "/v1/documents", {"id": known, "text": f"The anchor of the barge {run} is painted white."})
    assert accepted.status == 202, accepted.text
    until(lambda: ask("GET", f"/v1/documents/{known}").json["status"] == "live", 60)
    query = {"query": f"How is the anchor of the barge {run} painted?", "token_budget": 400}
    digests = {other: ask("GET", "/v1/digest", to=other).json for other in ask.hosts}
    assert all(digest["documents"] for digest in digests.values()), digests

    cut()
    written = ask("POST", "/v1/documents", {"id": new, "text": f"The mast of the barge {run} is painted black."})
    assert (written.status, written.json.get("durability")) == (202, "local"), written.text
    found = ask("POST", "/v1/context", query)
    assert found.status == 200, found.text
    assert found.json["degraded"]
    assert any(run in chunk["text"] for chunk in found.json["chunks"]), found.text

    host.check_output("nft delete table inet cut")
    until(lambda: ask("GET", f"/v1/documents/{new}", to=ask.hosts[-1]).json.get("status") == "live", 90)
    # This host's connections come back by themselves.
    until(lambda: ask("POST", "/v1/context", query).json["degraded"] is False, 60)
