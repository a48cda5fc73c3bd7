"""A pretended engine: it answers at once and computes nothing, because what is measured is what a gateway adds.

python -m tests.bench.qwen.pretended_upstream PORT
"""

from __future__ import annotations

import json
import sys

from aiohttp import web

MODEL = "pretended"
TEXT = "This answer was pretended."


def completion() -> dict[str, object]:
    message = {"role": "assistant", "content": TEXT}
    return {
        "id": "chatcmpl-pretended",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13},
    }


def chunks() -> list[dict[str, object]]:
    """The same answer as a stream: its words one by one, then why it ended."""

    def chunk(delta: dict[str, str], reason: str | None) -> dict[str, object]:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return {
            "id": "chatcmpl-pretended",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": MODEL,
            "choices": choices,
        }

    words = TEXT.split(" ")
    parts = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
    return [
        chunk({"role": "assistant", "content": ""}, None),
        *(chunk({"content": p}, None) for p in parts),
        chunk({}, "stop"),
    ]


_ANSWER = json.dumps(completion()).encode()
_EVENTS = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks()] + [b"data: [DONE]\n\n"]


async def chat(request: web.Request) -> web.StreamResponse:
    if not json.loads(await request.read()).get("stream"):
        return web.Response(body=_ANSWER, content_type="application/json")
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for event in _EVENTS:
        await answer.write(event)
    return answer


async def models(_request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "meta": {"n_ctx": 4096}}]})


async def health(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def application() -> web.Application:
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models), web.get("/health", health)])
    return app


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
