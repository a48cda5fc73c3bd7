"""What the clients ask: the mix of requests, the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.chaos.qwen.seen import STREAM, WHOLE

DEADLINE_S = 15.0
GRACE_S = 3.0
"""Beyond a deadline: the network, TLS, and a busy machine."""

PATIENCE_S = 60.0
"""For requests without a deadline: longer than any fault that holds answers up, and than a breaker is open."""

REPEATED = 6
CONVERSATIONS = 3
DOCUMENTS = {
    "chaos-maintenance": "The maintenance window of this platform is Tuesday 02:00 UTC, for two hours.",
    "chaos-backups": "Backups of this platform go to the object store every night and are kept for 30 days.",
    "chaos-oncall": "Who is on call for this platform is told by the rota in the wiki, page on-call.",
}
"""What is ingested before: with it there is something to answer from where no engine is left."""

CHAT = "/v1/chat/completions"
TOPICS = ("maintenance window", "backups", "rota for who is on call")


@dataclass(frozen=True)
class Ask:
    """One request: body without the model, headers without the key. `limit_s`: seconds that it may take.

    `path` is the chat's, or one of PBML's for what is ingested or fetched.
    """

    kind: str
    body: dict[str, Any]
    headers: dict[str, str]
    limit_s: float
    path: str = CHAT


def ask(run: str, seed: int, number: int) -> Ask:
    """Request `number` of a round. `run` keeps its questions apart from all other rounds', whose answers are cached.

    Of twenty: four repeat a question, three are in a conversation, the others are new; half are streams, of which one
    in five is long and one in three may be continued by the secondary model; half have a deadline.
    """
    chance = random.Random(f"{seed}/{number}")
    topic = chance.choice(TOPICS)
    form = chance.random()
    headers: dict[str, str] = {}
    if form < 0.2:
        text = f"Repeated question {run}-{chance.randrange(REPEATED)}: what of the {topic} of this platform?"
    else:
        text = f"Question {run}-{number}: what of the {topic} of this platform?"
        if form < 0.35:
            headers["X-DevMentor-Conversation"] = f"chaos-{run}-{chance.randrange(CONVERSATIONS)}"
    kind = STREAM if chance.random() < 0.5 else WHOLE
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
    if kind == STREAM:
        body["stream"] = True
        if chance.random() < 0.2:
            body |= {"max_tokens": 400, "ignore_eos": True}
        if chance.random() < 1 / 3:
            headers["X-DevMentor-On-Break"] = "continue"
    limit_s = PATIENCE_S
    if chance.random() < 0.5:
        headers["X-DevMentor-Deadline-Ms"] = str(int(DEADLINE_S * 1000))
        # Of a stream the deadline bounds the first event alone.
        limit_s = PATIENCE_S if kind == STREAM else DEADLINE_S + GRACE_S
    return Ask(kind, body, headers, limit_s)
