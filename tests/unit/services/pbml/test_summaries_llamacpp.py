"""Summaries by the real llama.cpp with a tiny model whose words are noise: it is idle, it is busy, it is asked."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from summary_world import prepared_postgres, world

from devmentor.pbml.summaries.load import LoadUnknown
from tools.models import write_tiny_qwen

pytest.importorskip("xllamacpp")
ROOT = Path(__file__).resolve().parents[4]
TALK = {"messages": [{"role": "user", "content": "Talk."}], "max_tokens": 4000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def conninfo():
    with prepared_postgres() as made:
        yield made


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    model = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_qwen(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "services/src"),
        "LLAMACPP_MODEL": str(model),
        "LLAMACPP_ALIAS": "tiny",
        "LLAMACPP_PORT": str(port),
        "LLAMACPP_THREADS": "1",
        "LLAMACPP_PARALLEL": "1",
        "LLAMACPP_CONTEXT": "8192",
        "LLAMACPP_DRAIN_S": "0",
    }
    environment.pop("NOTIFY_SOCKET", None)
    process = subprocess.Popen([sys.executable, "-m", "devmentor.llamacpp"], env=environment, stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
async def w(conninfo, url):
    async with world(conninfo) as made:
        made.engine.url = url
        await made.folder._engine.close()
        made.folder = made.worker("one", summary_model="tiny", summary_max_tokens=32, summary_timeout_s=60)
        await made.folder._engine.open()
        async with asyncio.timeout(180):
            while True:
                try:
                    await made.folder._engine.idle()
                    break
                except LoadUnknown:
                    await asyncio.sleep(0.2)
        yield made


async def test_the_real_engine_writes_summaries_while_it_is_idle(w):
    await w.say("c", 24)
    await w.folder.turn()
    rows = await w.all()
    assert [row["level"] for row in rows] == [1, 0, 0, 0, 0, 0], await w.rows("SELECT failure FROM folds")
    assert all(row["body"] for row in rows)


async def test_the_real_engine_is_not_asked_while_it_answers_somebody(w, url):
    await w.say("c", 24)
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=TALK) as answer:
        await answer.content.readline()
        assert not await w.folder._engine.idle()
        await w.folder.turn()
        assert await w.all() == []
    async with asyncio.timeout(180):
        while not await w.all():
            await w.folder.turn()
            await asyncio.sleep(0.1)
