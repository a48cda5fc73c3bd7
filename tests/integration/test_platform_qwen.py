"""An instance's pool; and what QWEN does not by default, switched on and off again: token budgets, semantic cache.

Runs on the platform that test_platform.py deployed; alone, it deploys one.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.integration import full_pool
from tests.integration.qwen_instance import ask_instance
from tools import ask
from tools.inventory_vars import Inventory
from tools.lab_run import deploy, prepare
from tools.runs import Run, lab, lab_command, playbook

pytestmark = pytest.mark.lab

TOKENS_PER_MINUTE = 3000
PURGE_POLL_SECONDS = 3  # after which every instance knows of a purge
Ask = Callable[..., ask.Answer]
Qwen = Callable[[dict[str, object]], Run]


def site(hosts: Path, options: dict[str, object]) -> Run:
    return playbook("site", hosts, "--tags", "qwen", "--extra-vars", json.dumps(options)).require()


@pytest.fixture(scope="module")
def qwen(hosts: Path) -> Iterator[Qwen]:
    """Deploys QWEN with these variables. Afterwards it is as the inventory has it, and a second run says so."""
    lab(hosts, "up").require()
    prepare(hosts, show=False)
    if lab(hosts, "exec", "lab1", "--", "systemctl", "is-active", "--quiet", "qwen").status != 0:
        deploy(hosts)
    yield lambda options: site(hosts, options)
    assert site(hosts, {}).changed()
    assert site(hosts, {}).changed() == {}


@pytest.fixture(scope="module")
def asked(hosts: Path) -> Ask:
    """Asks through the gateway, with a word that ends the answer: the lab's random model seldom ends one by itself."""
    client = ask.client_of(Inventory(hosts))
    model = client.expect(200, "GET", "/v1/models").body["data"][0]["id"]

    def send(question: str, max_tokens: int = 64) -> ask.Answer:
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "temperature": 0, "stop": list("aenr"), "max_tokens": max_tokens}
        return client.request("POST", "/v1/chat/completions", body, {"X-DevMentor-Context": "none"})

    return send


def test_an_instance_gives_its_engine_a_hundred_requests_and_the_next_waits_within_its_deadline_or_gets_429(
    qwen: Qwen, hosts: Path
) -> None:
    # Before the budgets below: a hundred answers are more than those allow.
    client = ask.client_of(Inventory(hosts))
    model = client.expect(200, "GET", "/v1/models").body["data"][0]["id"]
    call = ("https://lab1:8080", client.key, model, "llamacpp@chat")
    program = f"{Path(full_pool.__file__).read_text()}\n\nmain(*{(*call, f'run {time.time_ns()}')!r})\n"
    done = subprocess.run(
        lab_command(hosts, "exec", "lab1", "--", "python3", "-"),
        input=program, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["in_use"] == full_pool.POOL, "a hundred at the engine, and not one more"
    hurried, waited = found["hurried"], found["waited"]
    assert (hurried["status"], hurried["type"]) == (429, "rate_limit_error"), hurried
    assert int(hurried["retry_after"]) >= 1
    assert hurried["s"] < 5, "its deadline was one second"
    assert waited["status"] == 200, waited
    assert Counter(each["status"] for each in found["held"]) == {200: full_pool.POOL}


def test_a_question_of_the_same_meaning_is_answered_from_the_semantic_cache_until_it_is_purged(
    qwen: Qwen, asked: Ask, hosts: Path
) -> None:
    # The budget in time is for a quiet machine: here everything shares two cores.
    assert set(qwen({"qwen_semantic_cache": True, "qwen_semantic_budget_ms": 2000}).changed()) == {
        "lab1",
        "lab2",
        "lab3",
    }
    word = f"unit{time.time_ns()}"
    first = asked(f"How do I list the services of {word}?")
    assert (first.status, first.body["choices"][0]["finish_reason"]) == (200, "stop"), first.body
    again = until_served_by(asked, f"how do I list the services of {word} ?", "cache-semantic")
    assert again.body["choices"][0]["message"] == first.body["choices"][0]["message"]
    assert unquote(again.headers["x-devmentor-semantic-question"]) == f"How do I list the services of {word}?"
    assert float(again.headers["x-devmentor-semantic-score"]) >= 0.99
    other = asked(f"How do I drop the services of {word}?")
    assert other.headers["x-devmentor-served-by"] == "engine"

    purged = ask_instance(hosts, "lab2", "/v1/cache/purge", {"tenant": "lab", "reason": "test"})
    assert "error" not in purged, purged
    time.sleep(PURGE_POLL_SECONDS)
    assert asked(f"how do I list the services of {word}  ?").headers["x-devmentor-served-by"] == "engine"


def until_served_by(asked: Ask, question: str, wanted: str) -> ask.Answer:
    """The answer is kept after it was given: the next question may come before that."""
    for number in range(10):
        answer = asked(question + " " * number)
        if answer.headers.get("x-devmentor-served-by") == wanted:
            return answer
        time.sleep(0.5)
    pytest.fail(f"{question!r} was never served by {wanted}; at last by {answer.headers}")


def test_a_budget_holds_over_all_instances(qwen: Qwen, asked: Ask) -> None:
    qwen({"qwen_token_budgets": {"lab": {"tokens_per_minute": TOKENS_PER_MINUTE}}})
    if time.time() % 60 > 40:
        time.sleep(61 - time.time() % 60)  # one window is what is looked at
    minute, used, refused = time.time() // 60, 0, None
    while refused is None and time.time() // 60 == minute:
        answer = asked(f"What is number {time.time_ns()}?", 200)
        if answer.status == 200:
            used += answer.body["usage"]["total_tokens"]
        else:
            refused = answer
    assert refused is not None, f"{used} tokens in a minute and no end"
    assert refused.status == 429
    assert refused.body["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert TOKENS_PER_MINUTE / 2 < used <= TOKENS_PER_MINUTE
