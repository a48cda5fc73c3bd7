"""Asks the platform a question as a client would: through the gateway, with TLS and an API key.

A document is ingested first and waited for, so that the answer's prompt holds it; then the question is asked twice, the
second time to see the cache answer. Nothing here is privileged.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.inventory_vars import Inventory, InventoryError

DEFAULT_QUESTION = "When is the maintenance window of this platform, and what is its code word?"
WAIT_LIVE = 60.0  # seconds until an ingested document must be searchable
TIMEOUT = 60.0  # seconds for one request


class AskError(Exception):
    """The platform did not answer as it must; the message says what was asked and what came."""


@dataclass
class Answer:
    """One HTTP answer: status, lower-case headers, decoded JSON body and the seconds it took."""

    status: int
    headers: dict[str, str]
    body: Any
    seconds: float


@dataclass
class Client:
    """A client of the gateway at `host` (its virtual address) that trusts `ca` (PEM) and has an API key."""

    host: str
    ca: str
    key: str = field(repr=False)
    port: int = 443

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        context = ssl.create_default_context(cadata=self.ca)
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT, context=context)
        began = time.monotonic()
        try:
            connection.request(
                method,
                path,
                body=None if body is None else json.dumps(body),
                headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **(headers or {})},
            )
            answer = connection.getresponse()
            text = answer.read()
        # A host that is killed in the middle of its answer is no OSError but an answer that is not whole.
        except (OSError, http.client.HTTPException) as error:
            raise AskError(f"{method} https://{self.host}:{self.port}{path}: {error!r}") from error
        finally:
            connection.close()
        seconds = time.monotonic() - began
        try:
            decoded = json.loads(text) if text else None
        except ValueError:
            decoded = text.decode("utf-8", "replace")
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, decoded, seconds)

    def expect(self, status: int, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """`request`, raising AskError on any other status."""
        answer = self.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        if answer.status != status:
            raise AskError(f"{method} {path}: status {answer.status}, expected {status}: {answer.body}")
        return answer


def client_of(inventory: Inventory) -> Client:
    """A client of the inventory's platform, with the first tenant's key."""
    host = (inventory.hosts("gateway") or [""])[0]
    if not host:
        raise AskError(f"{inventory.path}: the group gateway is empty.")
    keys = inventory.value(host, "vault_api_keys")
    return Client(
        host=str(inventory.value(host, "devmentor_vip")),
        ca=str(inventory.value(host, "vault_ca_cert")),
        key=str(next(iter(keys.values()))),
    )


def ingest(client: Client, document_id: str, text: str) -> float:
    """Ingests a document and waits until it is live. Returns the seconds from acceptance to live."""
    accepted = client.expect(202, "POST", "/v1/documents", {"id": document_id, "title": document_id, "text": text})
    began = time.monotonic()
    while True:
        state = client.expect(200, "GET", f"/v1/documents/{document_id}").body
        if state["status"] == "live" and state["version"] >= accepted.body["version"]:
            return time.monotonic() - began
        if time.monotonic() - began > WAIT_LIVE:
            raise AskError(f"document {document_id}: still {state['status']} after {WAIT_LIVE:.0f} s")
        time.sleep(0.2)


def chat(client: Client, question: str) -> Answer:
    model = client.expect(200, "GET", "/v1/models").body["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 48, "temperature": 0}
    return client.expect(200, "POST", "/v1/chat/completions", body)


def content(answer: Answer) -> str:
    return str(answer.body["choices"][0]["message"]["content"])


def run(inventory: Inventory, question: str) -> dict[str, Any]:
    """Document, question, the same question again. Returns what happened, for printing and for tests."""
    client = client_of(inventory)
    word = uuid.uuid4().hex[:10]
    text = f"The maintenance window of this platform is Tuesday 02:00 UTC. Its code word is {word}."
    live = ingest(client, "maintenance-window", text)
    first, second = chat(client, question), chat(client, question)
    return {
        "address": f"https://{client.host}",
        "document": text,
        "document_live_seconds": round(live, 3),
        "question": question,
        "answer": content(first),
        "request_id": first.headers.get("x-request-id"),
        "served_by": [first.headers.get("x-devmentor-served-by"), second.headers.get("x-devmentor-served-by")],
        "cache": [first.headers.get("x-devmentor-cache"), second.headers.get("x-devmentor-cache")],
        "context": first.headers.get("x-devmentor-context"),
        "seconds": [round(first.seconds, 3), round(second.seconds, 3)],
        "same_answer": content(first) == content(second),
    }


def render(result: dict[str, Any]) -> str:
    first, second = zip(result["served_by"], result["seconds"], strict=True)
    return "\n".join(
        [
            f"  platform   {result['address']}",
            f"  document   {result['document']!r} searchable after {result['document_live_seconds']} s",
            f"  question   {result['question']}",
            f"  answer     {result['answer']!r}",
            f"             served by {first[0]} in {first[1]} s, context {result['context']}, "
            f"request {result['request_id']}",
            f"  again      served by {second[0]} in {second[1]} s, same answer: {result['same_answer']}",
            "             (the lab's model has random weights: its words are noise, everything around them is real)",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="ask", description=__doc__)
    parser.add_argument("--inventory", type=Path, default=Path("inventories/lab"))
    parser.add_argument("--question", default=DEFAULT_QUESTION)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    try:
        result = run(Inventory(arguments.inventory), arguments.question)
    except (AskError, InventoryError) as error:
        print(f"ask: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2) if arguments.json else render(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
