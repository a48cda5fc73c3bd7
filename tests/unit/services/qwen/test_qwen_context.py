"""Context from PBML: in the prompt, in the cache's key, in the trace, and an answer without it."""

from pathlib import Path

import pytest
from conftest import StartTier, Tier
from qwen_doubles import SAID, Engine, Pbml, serving

from devmentor.common import tls
from tests.unit.services.authority import Authority


async def test_context_is_in_the_prompt_with_its_source(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    pbml.learn("The code word is heron.")
    answer = await grounded.chat("What is the code word?")
    assert answer.context == "ok"
    system = engine.questions[0]["messages"][0]
    assert system["role"] == "system"
    assert "The code word is heron." in system["content"]
    assert "document_id doc-0, version 1, chunk 0" in system["content"]
    assert pbml.asked[0]["query"] == "What is the code word?"
    assert 0 < pbml.asked[0]["token_budget"] <= engine.context_length // 2
    assert pbml.authorizations == {"Bearer key-of-lab"}


async def test_a_new_document_makes_the_cached_answer_old(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    await grounded.chat()
    assert (await grounded.chat()).cache == "hit"
    pbml.learn("News.")
    answer = await grounded.chat()
    assert (answer.cache, answer.context) == ("miss", "ok")
    assert "News." in engine.questions[-1]["messages"][0]["content"]
    assert (await grounded.chat()).cache == "hit"


async def test_a_watermark_is_passed_on_and_nothing_cached_counts(grounded: Tier, pbml: Pbml) -> None:
    await grounded.chat()
    assert (await grounded.chat(headers={"X-DevMentor-Watermark": "pg:7"})).cache == "miss"
    assert pbml.asked[-1]["watermark"] == "pg:7"


async def test_context_can_be_declined(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    pbml.learn("Something.")
    assert (await grounded.chat(headers={"X-DevMentor-Context": "none"})).context == "none"
    assert len(engine.questions[0]["messages"]) == 1
    assert pbml.asked == []


async def test_context_takes_no_more_tokens_than_the_client_says_and_has_answers_of_its_own(
    grounded: Tier, engine: Engine, pbml: Pbml
) -> None:
    pbml.learn("Something.")
    await grounded.chat()
    fewer = {"X-DevMentor-Context-Tokens": "100"}
    assert ((first := await grounded.chat(headers=fewer)).cache, first.context) == ("miss", "ok")
    assert [asked["token_budget"] for asked in pbml.asked] == [engine.context_length // 2, 100]
    assert (await grounded.chat(headers=fewer)).cache == "hit"
    assert (await grounded.chat(headers={"X-DevMentor-Context-Tokens": "200"})).cache == "miss"
    assert (await grounded.chat(headers={"X-DevMentor-Context-Tokens": "63"})).context == "none"


@pytest.mark.parametrize("given", ["0", "-1", "1e3", "many", ""])
async def test_context_tokens_that_are_no_number_are_refused(grounded: Tier, engine: Engine, given: str) -> None:
    answer = await grounded.chat(headers={"X-DevMentor-Context-Tokens": given})
    assert (answer.status, answer.body["error"]["param"]) == (400, "X-DevMentor-Context-Tokens")
    assert engine.questions == []


async def test_without_pbml_the_answer_has_no_context_says_so_and_is_not_kept(grounded: Tier, pbml: Pbml) -> None:
    pbml.down = True
    answer = await grounded.chat()
    assert (answer.status, answer.served_by, answer.context) == (200, "engine", "degraded")
    assert (await grounded.chat()).served_by == "engine"


async def test_what_was_cached_still_serves_while_pbml_is_away(grounded: Tier, pbml: Pbml) -> None:
    await grounded.chat()
    pbml.down = True
    answer = await grounded.chat()
    assert (answer.cache, answer.context) == ("hit", "degraded")


async def test_the_second_replica_is_asked_when_the_first_is_gone(
    start: StartTier, pbml: Pbml, urls: dict[str, str]
) -> None:
    tier = await start(pbml_urls=["http://127.0.0.1:9", urls["pbml"]])
    pbml.learn("Found at the second.")
    assert (await tier.chat()).context == "ok"


async def test_a_conversation_is_written_back_and_its_turns_come_into_the_prompt(
    grounded: Tier, engine: Engine, pbml: Pbml
) -> None:
    pbml.turns = [{"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello Ada."}]
    answer = await grounded.chat("Who am I?", metadata={"conversation_id": "c1"})
    await grounded.settle()
    roles = [(m["role"], m["content"]) for m in engine.questions[0]["messages"]]
    assert roles == [("user", "I am Ada."), ("assistant", "Hello Ada."), ("user", "Who am I?")]
    assert [(turn["role"], turn["content"]) for turn, _ in pbml.written] == [("user", "Who am I?"), ("assistant", SAID)]
    request_id = answer.headers["x-request-id"]
    assert [key for _, key in pbml.written] == [f"{request_id}-user", f"{request_id}-assistant"]
    assert pbml.asked[0]["conversation_id"] == "c1"
    assert "metadata" not in engine.questions[0]


async def test_a_streamed_turn_is_written_back_too(grounded: Tier, pbml: Pbml) -> None:
    await grounded.chat("Who?", stream=True, headers={"X-DevMentor-Conversation": "c2"})
    await grounded.settle()
    assert [turn["role"] for turn, _ in pbml.written] == ["user", "assistant"]


async def test_a_cached_question_is_asked_again_in_another_conversation(grounded: Tier, pbml: Pbml) -> None:
    await grounded.chat(headers={"X-DevMentor-Conversation": "a"})
    assert (await grounded.chat(headers={"X-DevMentor-Conversation": "b"})).cache == "miss"


async def test_the_trace_shows_what_the_engine_got(grounded: Tier, engine: Engine, pbml: Pbml, admin_key: str) -> None:
    pbml.learn("Traced text.")
    answer = await grounded.chat()
    path = f"/v1/traces/{answer.headers['x-request-id']}"
    trace = await grounded.request("GET", path, headers={"Authorization": f"Bearer {admin_key}"})
    assert trace.body["engine_body"] == engine.questions[0]
    assert trace.body["served_by"] == "engine"
    assert trace.body["context"]["provenance"][0]["document_id"] == "doc-0"
    assert (await grounded.request("GET", path)).status == 403
    assert (
        await grounded.request("GET", "/v1/traces/unknown", headers={"Authorization": f"Bearer {admin_key}"})
    ).status == 404


async def test_pbml_is_shown_the_renewed_certificate_by_new_connections(
    start: StartTier, pbml: Pbml, tmp_path: Path
) -> None:
    ca = Authority(tmp_path, "ca")
    cert, key = ca.issue("client")
    server = tls.server_context(*ca.issue("server"), ca.path)

    async with serving(pbml.app, server) as url:
        tier = await start(pbml_urls=[url], tls_cert=cert, tls_key=key, tls_ca=ca.path)
        await tier.chat("first")
        before = pbml.certificate
        ca.issue("client")
        tls.reload()
        pbml.closes = True
        await tier.chat("second")
        assert pbml.certificate not in (None, before)
