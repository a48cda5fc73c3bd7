"""The peer: mem0 adds documents. Runs in mem0's own environment, and imports nothing of this repository.

    python mem0_peer.py QDRANT_PORT EMBEDDINGS_URL COLLECTION CONCURRENCY HISTORY < documents

Input: a line of JSON for each add, a list of texts (one document or several, cut as PBML cuts them: mem0 cuts none, and
what is longer than the model's window it could not embed). Output: one line of JSON: seconds of all, of each add, and
of the processor.

`AsyncMemory` with `infer=False`: texts are stored as they are, no model is called but the embeddings' one. An add ends
when Qdrant has the points (its client waits for that), so what is acknowledged is searchable at the same moment.
"""

import asyncio
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

# Before it is imported: it decides then whether it sends telemetry.
os.environ |= {"MEM0_TELEMETRY": "False", "OPENAI_API_KEY": "not-looked-at"}

from mem0 import AsyncMemory


def memory(port: int, embeddings: str, collection: str, history: str) -> AsyncMemory:
    return AsyncMemory.from_config(
        {
            "vector_store": {
                "provider": "qdrant",
                "config": {
                    "host": "127.0.0.1",
                    "port": port,
                    "collection_name": collection,
                    "embedding_model_dims": 384,
                },
            },
            "embedder": {
                "provider": "openai",
                "config": {"model": "embeddings", "openai_base_url": f"{embeddings}/v1", "api_key": "not-looked-at"},
            },
            "llm": {"provider": "openai", "config": {"model": "none", "api_key": "not-looked-at"}},
            "history_db_path": history,
        }
    )


async def main() -> None:
    port, embeddings, collection, concurrency, history = sys.argv[1:]
    documents = [json.loads(line) for line in sys.stdin]
    # It runs its blocking calls in the loop's own threads, of which there are few on a small machine.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4 * int(concurrency)))
    store = memory(int(port), embeddings, collection, history)
    slots = asyncio.Semaphore(int(concurrency))
    seconds: list[float] = []
    failures: list[tuple[int, str]] = []
    stored = 0

    async def add(number: int, texts: list[str]) -> None:
        nonlocal stored
        async with slots:
            begin = time.perf_counter()
            try:
                added = await store.add(
                    [{"role": "user", "content": text} for text in texts], user_id="bench", infer=False
                )
            except Exception as error:
                failures.append((number, f"{type(error).__name__}: {error}"[:200]))
                return
            seconds.append(time.perf_counter() - begin)
            stored += len(added["results"])

    begin, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(add(number, texts) for number, texts in enumerate(documents)))
    whole, used = time.perf_counter() - begin, time.process_time() - used
    said = {"seconds": whole, "cpu_s": used, "adds": seconds, "stored": stored, "failures": failures}
    print(json.dumps(said), flush=True)
    os._exit(0)  # threads of its clients would keep it


asyncio.run(main())
