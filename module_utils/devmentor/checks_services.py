"""verify's checks of what clients call: Qwen, PBML and the gateway in front of them."""

from __future__ import annotations

import json
from typing import Any

from .checks_base import Failed, Plan, Recorder, poll
from .checks_client import ask, bearer, run_command
from .checks_engines import completion


def ready(plan: Plan, base: str) -> str:
    """Within the patience: a service says that it is not ready as soon as one of its own probes takes too long."""

    def once() -> str:
        ask(plan, "GET", f"{base}/ready")
        return "ready"

    return poll(once, plan.patience)


def check_qwen(plan: Plan, record: Recorder) -> None:
    base = f"https://{plan.address}:{plan.ports['qwen']}"
    record.check("ready", lambda: ready(plan, base))
    record.check("token through it", lambda: completion(plan, base, bearer(plan)))


def check_pbml(plan: Plan, record: Recorder) -> None:
    base = f"https://{plan.address}:{plan.ports['pbml']}"
    document = f"verify-{plan.run}-{plan.host}"
    sentence = f"The harbour pilot of {plan.host} keeps the blue lantern {plan.run} in the third boathouse."

    def ingest() -> str:
        body = {"id": document, "title": "verify", "text": sentence}
        answer = ask(plan, "POST", f"{base}/v1/documents", body, bearer(plan), expect=(202,)).json()
        if answer["durability"] != "quorum":
            raise Failed(f"acknowledged with durability {answer['durability']}, not quorum")
        return f"version {answer['version']} acknowledged by a quorum"

    def live() -> str:
        status = ask(plan, "GET", f"{base}/v1/documents/{document}", headers=bearer(plan)).json()["status"]
        if status != "live":
            raise Failed(f"is {status}, not live")
        return "live"

    def fetch() -> str:
        query = {"query": f"Where does the pilot of {plan.host} keep the blue lantern {plan.run}?", "token_budget": 512}

        def whole() -> Any:
            context = ask(plan, "POST", f"{base}/v1/context", query, bearer(plan)).json()
            if context.get("degraded"):
                raise Failed(f"the answer is degraded, without {', '.join(context.get('degraded_parts') or ['?'])}")
            return context

        # A source that was too slow once is not a fault yet; a document that is live is in the first whole answer.
        context = poll(whole, plan.patience)
        found = [chunk for chunk in context["chunks"] if chunk.get("document_id") == document]
        if not found:
            raise Failed(f"the document is not among {len(context['chunks'])} chunks")
        return f"found by {' and '.join(sorted(found[0]['scores']))}"

    def delete() -> str:
        url = f"{base}/v1/documents/{document}"
        ask(plan, "DELETE", url, headers=bearer(plan), expect=(200, 202, 204))

        def gone() -> str:
            answer = ask(plan, "GET", url, headers=bearer(plan), expect=(200, 404, 410))
            if answer.status == 200 and answer.json().get("status") != "deleted":
                raise Failed(f"still there: {answer.json().get('status')}")
            return "deleted"

        return poll(gone, plan.patience)

    record.check("ready", lambda: ready(plan, base))
    if record.check("document ingested", ingest):
        if record.check("document live", lambda: poll(live, plan.patience)):
            record.check("document found", fetch)
        record.check("document deleted", delete)


def check_gateway(plan: Plan, record: Recorder) -> None:
    def holder() -> str:
        links = json.loads(run_command(["ip", "-j", "addr"]))
        mine = [link["ifname"] for link in links for a in link.get("addr_info", []) if a.get("local") == plan.vip]
        record.facts["vip_holder"] = bool(mine)
        return f"{plan.vip} is on {mine[0]}" if mine else f"{plan.vip} is on the other gateway"

    port = plan.ports["gateway"]
    record.check("token through it", lambda: completion(plan, f"https://{plan.address}:{port}", bearer(plan)))
    if plan.vip:
        record.check("virtual address", holder)
        record.check("token through VIP", lambda: completion(plan, f"https://{plan.vip}:{port}", bearer(plan)))
