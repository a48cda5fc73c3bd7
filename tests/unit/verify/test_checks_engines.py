"""The engines: whose token it was."""

from __future__ import annotations

import json

import pytest

from module_utils.devmentor.checks_base import Failed
from module_utils.devmentor.checks_client import Answer
from module_utils.devmentor.checks_engines import judge_completion


def answer(served: str | None = None, tokens: int = 4, text: str = "x") -> Answer:
    body = {"usage": {"completion_tokens": tokens}, "choices": [{"message": {"content": text}}]}
    return Answer(200, {"x-devmentor-served-by": served} if served else {}, json.dumps(body).encode())


def test_a_token_counts_only_when_the_engine_made_it() -> None:
    assert judge_completion(answer()) == "4 tokens"
    assert judge_completion(answer("engine")) == "4 tokens by the engine"
    for bad in (answer("degraded"), answer("cache-l2"), answer(tokens=0, text="")):
        with pytest.raises(Failed):
            judge_completion(bad)
