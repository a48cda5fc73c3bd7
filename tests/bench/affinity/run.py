"""`make bench-affinity`: conversations kept on one instance beside round robin, over the platform's virtual address.

    python -m tests.bench.affinity.run [--rounds 3] [--conversations 6] [--turns 6] [--keep]

In each round both arms have so many new conversations at once, one arm after the other, the first one in turn. The
result goes to .cache/bench/affinity.json; report.py writes docs/qwen-affinity.md from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lab.errors import LabError
from tests.bench.affinity import report
from tests.bench.affinity.conversations import ARMS, Conversation, Turn, counts
from tests.chaos.campaign import INVENTORY, have
from tests.chaos.postgres.agents import port
from tests.chaos.postgres.run import commit
from tests.chaos.qwen.client import connection, parsed
from tests.chaos.qwen.deployed import PROBE_S, Deployed, inside
from tests.chaos.qwen.rounds import NotWhole, require_whole
from tools import ask
from tools.inventory_vars import InventoryError
from tools.runs import RunError, lab, load_average

PATH = "/v1/chat/completions"
LIMIT_S = 120.0
MAX_TOKENS = 16
ENGINE_METRICS = f"http://127.0.0.1:{port('llamacpp_chat')}/metrics"
EVALUATED = re.compile(r"^llamacpp:prompt_tokens_total (\S+)$", re.MULTILINE)


@dataclass
class Heard:
    """A stream as it comes in, and why it is not a whole answer of the engine's."""

    begin: float
    instance: str = ""
    ttft_s: float | None = None
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] | None = None
    done: bool = False
    error: str = ""

    async def read(self, answer: httpx.Response) -> None:
        served_by = answer.headers.get("x-devmentor-served-by", "")
        self.instance = answer.headers.get("x-devmentor-instance", "")
        if answer.status_code != 200:
            self.error = f"status {answer.status_code}: {(await answer.aread())[:200]!r}"
        elif served_by not in ("engine", "pending"):
            self.error = f"served by {served_by or 'nobody'}"
        else:
            async for line in answer.aiter_lines():
                self.line(line)
            self.error = self.error or ("" if self.done else "the stream ended without [DONE]")

    def line(self, line: str) -> None:
        if line == "data: [DONE]":
            self.done = True
        elif line.startswith("data:"):
            chunk = parsed(line[5:].encode()) or {}
            if "error" in chunk:
                self.error = f"event: {chunk['error']}"
            words = [choice.get("delta", {}).get("content") for choice in chunk.get("choices") or []]
            # A token may be half a character: words without letters are words.
            if self.ttft_s is None and any(word is not None for word in words):
                self.ttft_s = time.monotonic() - self.begin
            self.text += "".join(word or "" for word in words)
            self.usage, self.timings = chunk.get("usage") or self.usage, chunk.get("timings") or self.timings


async def take_turn(client: httpx.AsyncClient, conversation: Conversation, number: int, model: str) -> Turn:
    """One turn, from its sending to its end. Raises nothing that the platform can cause: `error` says it."""
    conversation.next_question(number)
    body, headers = conversation.request(model, MAX_TOKENS)
    heard = Heard(time.monotonic())
    try:
        async with asyncio.timeout(LIMIT_S), client.stream("POST", PATH, json=body, headers=headers) as answer:
            await heard.read(answer)
    except (httpx.HTTPError, OSError) as problem:  # a time limit is an OSError, too
        heard.error = repr(problem)
    conversation.answered(heard.text or "-")
    return Turn(
        conversation.arm, conversation.name, number, heard.instance, heard.ttft_s, time.monotonic() - heard.begin,
        *counts(heard.usage, heard.timings), error=heard.error,
    )  # fmt: skip


async def talk(client: httpx.AsyncClient, conversation: Conversation, turns: int, model: str) -> list[Turn]:
    """A whole conversation; what broke off is not gone on with."""
    found = []
    for number in range(1, turns + 1):
        found.append(await take_turn(client, conversation, number, model))
        if not found[-1].ok:
            break
    return found


async def side_by_side(
    client: httpx.AsyncClient, conversations: Sequence[Conversation], turns: int, model: str
) -> list[Turn]:
    """All conversations at once, each turn after the one before: their order at the instances is left to chance."""
    found = await asyncio.gather(*(talk(client, each, turns, model) for each in conversations))
    return [turn for each in found for turn in each]


def engines_evaluated(deployed: Deployed) -> dict[str, float]:
    """Host -> prompt tokens that its engine evaluated since its start, by its own counter; hosts that do not say are
    left out."""
    command = ["curl", "--silent", "--fail", "--max-time", str(PROBE_S - 1), ENGINE_METRICS]
    found = {}
    for host in deployed.hosts("qwen"):
        with suppress(ValueError):
            values = EVALUATED.findall(inside(host, command))
            if len(values) == 1:
                found[host.name] = float(values[0])
    return found


def grown(before: dict[str, float], after: dict[str, float]) -> float | None:
    """How much the counters of all hosts grew; None where one of them is not known or began anew."""
    if not before or before.keys() != after.keys() or any(after[name] < before[name] for name in before):
        return None
    return sum(after.values()) - sum(before.values())


def arm_of(deployed: Deployed, arm: str, number: int, options: argparse.Namespace, model: str) -> dict[str, Any]:
    """One arm's part of a round."""
    run = f"{os.getpid()}-{int(time.time())}"
    # The seeds are of this run alone: no engine has seen these prompts.
    conversations = [
        Conversation(arm, f"bench-{arm}-{run}-{n}", f"{arm}/{run}/{n}", options.words)
        for n in range(options.conversations)
    ]

    async def talking() -> list[Turn]:
        client = connection(deployed.base_url, deployed.client.ca, deployed.client.key)
        async with client:
            return await side_by_side(client, conversations, options.turns, model)

    before, load = engines_evaluated(deployed), load_average()
    turns = asyncio.run(talking())
    counted = grown(before, engines_evaluated(deployed))
    return {"arm": arm, "round": number, "load": load, "counted": counted, "turns": [asdict(turn) for turn in turns]}


def measure(deployed: Deployed, options: argparse.Namespace) -> list[dict[str, Any]]:
    model, parts = deployed.model(), []
    for number in range(1, options.rounds + 1):
        for arm in ARMS if number % 2 else reversed(ARMS):
            require_whole(deployed)
            parts.append(arm_of(deployed, arm, number, options, model))
            failed = [turn for turn in parts[-1]["turns"] if turn["error"]]
            print(f"round {number}, {arm}: {len(parts[-1]['turns'])} turns, {len(failed)} failed", flush=True)
            for turn in failed[:3]:
                print(f"    {turn['conversation']} turn {turn['number']}: {turn['error']}", flush=True)
    return parts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-affinity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=6, help="at once")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--words", type=int, default=100, help="of each question")
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--keep", action="store_true", help="use the running lab as it is; leave it up at the end")
    parser.add_argument("--only-look", action="store_true", help="print the table, write nothing")
    options = parser.parse_args(arguments)
    inventory, version = options.inventory.resolve(), commit()
    try:
        deployed = have(inventory, options.keep)
        parts = measure(deployed, options)
    except (NotWhole, RunError, LabError, ask.AskError, InventoryError) as error:
        print(f"bench-affinity: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            lab(inventory, "down").require()
    asked = {name: getattr(options, name) for name in ("rounds", "conversations", "turns", "words")}
    instances = len(deployed.names("qwen"))
    result = {"commit": version, "cores": os.cpu_count(), "instances": instances, **asked, "parts": parts}
    print(report.table(result))
    if not options.only_look:
        report.RESULT.parent.mkdir(parents=True, exist_ok=True)
        report.RESULT.write_text(json.dumps(result, indent=1) + "\n")
        report.write(report.RESULT)
    return 1 if report.problems(result) else 0


if __name__ == "__main__":
    sys.exit(main())
