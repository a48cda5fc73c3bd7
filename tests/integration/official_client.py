"""The official openai client against the platform, told nothing but where it is: base URL, key and CA.

    OPENAI_BASE_URL=https://VIP/v1 OPENAI_API_KEY=KEY SSL_CERT_FILE=ca.pem python -m tests.integration.official_client

Prints one JSON object of what it got; a client that cannot read an answer raises, and the exit status says so.
"""

from __future__ import annotations

import json
import sys
import uuid
from typing import Any

import openai

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(text: str) -> Any:
    """A question that nobody asked before."""
    return [{"role": "user", "content": f"{text} {uuid.uuid4().hex}"}]


def chunks(stream: Any) -> dict[str, Any]:
    """What a stream adds up to, as the client reads it: text, calls of tools, how it ended, tokens."""
    found: dict[str, Any] = {"chunks": 0, "text": "", "tools": [], "finish": None, "tokens": None}
    for chunk in stream:
        found["chunks"] += 1
        if chunk.usage is not None:
            found["tokens"] = chunk.usage.completion_tokens
        for choice in chunk.choices:
            found["text"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                if call.function.name:
                    found["tools"].append({"name": call.function.name, "arguments": ""})
                found["tools"][-1]["arguments"] += call.function.arguments or ""
            found["finish"] = choice.finish_reason or found["finish"]
    return found


def refused(call: Any) -> str:
    """The class of the client's own error that a call ends with."""
    try:
        call()
    except openai.OpenAIError as error:
        return type(error).__name__
    return "nothing refused"


def exercise() -> dict[str, Any]:
    """Every kind of request once. Raises openai.OpenAIError."""
    client = openai.OpenAI(max_retries=0, timeout=60)
    models = [model.id for model in client.models.list()]
    chat = client.chat.completions
    common: dict[str, Any] = {"model": models[0], "max_tokens": 8}
    raw = chat.with_raw_response.create(messages=ask("Who is there?"), **common)
    whole = raw.parse()
    tools = chat.create(messages=ask("What is the weather in Bonn?"), tools=[WEATHER], **common)
    options = {"include_usage": True}
    wrong = openai.OpenAI(api_key="wrong", max_retries=0, timeout=60)
    return {
        "models": models,
        "served_by": raw.headers.get("x-devmentor-served-by"),
        "whole": {"text": whole.choices[0].message.content, "tokens": whole.usage and whole.usage.completion_tokens},
        "stream": chunks(chat.create(messages=ask("Who?"), stream=True, stream_options=options, **common)),
        "tools": {
            "finish": tools.choices[0].finish_reason,
            "calls": [call.function.name for call in tools.choices[0].message.tool_calls or []],
        },
        "tools_stream": chunks(chat.create(messages=ask("And in Mainz?"), tools=[WEATHER], stream=True, **common)),
        "completion": client.completions.create(prompt=ask("Once")[0]["content"], **common).choices[0].text,
        "embedding": len(client.embeddings.create(model=models[-1], input="a sentence").data[0].embedding),
        "no_such_model": refused(lambda: chat.create(model="no-such-model", messages=ask("Who?"))),
        "no_such_key": refused(lambda: wrong.models.list()),
    }


if __name__ == "__main__":
    print(json.dumps(exercise()))
    sys.exit(0)
