"""What PBML does when the operator asks for it, on the deployed platform: quotas, retention, summaries by its own QWEN.

Changes what the lab's PBML is told, and takes it back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.pbml.platform import Platform
from tests.chaos.postgres.agents import port
from tests.chaos.postgres.cluster import wait_until
from tools import ask
from tools.inventory_vars import Inventory
from tools.lab_run import deploy, prepare
from tools.runs import lab, playbook

pytestmark = [pytest.mark.lab, pytest.mark.long]

TENANT = "limited"
RUN = f"{time.time_ns():x}"
# More than the newest 20, which a fetch shows as they are.
TURNS = 30


def settings(inventory: Inventory) -> dict[str, Any]:
    """Another tenant with limits; summaries by the platform's QWENs, of so few turns that a test can say them."""
    qwens = [f"https://{inventory.value(name, 'ansible_host')}:{port('qwen')}" for name in inventory.hosts("qwen")]
    return {
        "devmentor_tenants": ["lab", TENANT],
        "pbml_quotas": {TENANT: {"documents": 2}},
        "pbml_retention": {TENANT: {"documents_days": 1}},
        "pbml_summary_urls": qwens,
        "pbml_summary_api_key": "{{ vault_api_keys.lab }}",
        "pbml_summary_max_tokens": 48,
        "pbml_summary_turns": 8,
        "pbml_summary_keep_turns": 4,
    }


@pytest.fixture(scope="module")
def limited(hosts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ask.Client]:
    """A client of the other tenant."""
    lab(hosts, "up").require()
    prepare(hosts, show=False)
    if lab(hosts, "exec", "lab2", "--", "systemctl", "is-active", "--quiet", "pbml").status != 0:
        deploy(hosts, show=False)
    given = tmp_path_factory.mktemp("pbml") / "given.json"
    given.write_text(json.dumps(settings(Inventory(hosts))))
    with_them = ("-e", f"@{given}")
    playbook("secrets", hosts, *with_them).require()
    # The gateways know the keys, too.
    playbook("site", hosts, "--tags", "gateway,qwen,pbml", *with_them).require()
    inventory = Inventory(hosts)
    keys = inventory.value(inventory.hosts("gateway")[0], "vault_api_keys")
    yield replace(ask.client_of(inventory), key=str(keys[TENANT]))
    playbook("site", hosts, "--tags", "gateway,qwen,pbml").require()


def document(client: ask.Client, name: str) -> ask.Answer:
    return client.request("POST", "/v1/documents", {"id": f"{name}-{RUN}", "text": f"What {name} is about."})


def test_above_a_quota_a_document_is_refused_until_another_one_goes(limited: ask.Client) -> None:
    # On a lab that is kept there may be a run's before.
    for each in limited.expect(200, "GET", "/v1/documents").body["documents"]:
        limited.expect(202, "DELETE", f"/v1/documents/{each['document_id']}")
    assert [document(limited, name).status for name in ("first", "second")] == [202, 202]
    refused = document(limited, "third")
    assert (refused.status, refused.body["error"]["code"]) == (403, "quota_exceeded")
    assert "2 of 2 documents" in refused.body["error"]["message"]
    limited.expect(202, "DELETE", f"/v1/documents/first-{RUN}")
    assert document(limited, "third").status == 202
    assert limited.expect(200, "GET", "/v1/usage").body["documents"] == {"used": 2, "limit": 2}


def test_what_is_older_than_its_tenant_keeps_goes_and_another_tenants_stays(limited: ask.Client, hosts: Path) -> None:
    other = ask.client_of(Inventory(hosts))
    assert document(other, "second").status == 202
    aged = Platform(hosts).sql(
        "UPDATE versions SET received_at = received_at - interval '25 hours'"
        f" WHERE document_id = 'second-{RUN}' RETURNING tenant;"
    )
    assert aged is not None
    assert {"lab", TENANT} <= set(aged)

    def left() -> str:
        answer = limited.request("GET", f"/v1/documents/second-{RUN}")
        return "" if answer.status == 404 else f"status {answer.status}: {answer.body}"

    # Workers look every minute.
    _, why = wait_until(left, 150, every=2)
    assert not why
    limited.expect(200, "GET", f"/v1/documents/third-{RUN}")
    other.expect(200, "GET", f"/v1/documents/second-{RUN}")


def test_older_turns_are_folded_into_summaries_by_the_platforms_own_qwen(limited: ask.Client) -> None:
    talk = f"talk-{RUN}"
    for number in range(TURNS):
        turn = {"conversation_id": talk, "role": ("user", "assistant")[number % 2], "content": f"Turn {number} of it."}
        limited.expect(202, "POST", "/v1/turns", turn)
    wanted = {"query": "What was said?", "conversation_id": talk, "token_budget": 2000}
    found: list[dict[str, Any]] = []

    def lacking() -> str:
        chunks = limited.expect(200, "POST", "/v1/context", wanted).body["chunks"]
        found[:] = [chunk for chunk in chunks if chunk["source"] == "summary"]
        return "" if found else "no summary"

    # Turns are folded when they are a minute old, and when the engines have nothing to do.
    _, why = wait_until(lacking, 300, every=5)
    assert not why
    assert found[0]["text"].strip()
    assert (found[0]["summary"]["level"], found[0]["summary"]["turns"]) == (0, 8)
    turns = limited.expect(200, "GET", f"/v1/conversations/{talk}/turns?limit=100").body["turns"]
    assert [turn["content"] for turn in turns] == [f"Turn {number} of it." for number in range(TURNS)]
