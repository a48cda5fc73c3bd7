"""Clients of a round: writers, and readers who hold PBML to its watermarks. One event loop in a thread."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
import time

from devmentor.pbml.client import BadAnswer, Client, Refused, Unavailable
from tests.chaos.pbml.attempts import ACKNOWLEDGED, UNKNOWN, History, Read, Write
from tests.chaos.pbml.pace import Pace, next_due

DEADLINE_S = 10.0
_TALK = 200
"""Turns of one conversation."""
_STEP_S = 0.2
"""Longest wait without a look at whether it is over."""
_WORDS = [
    "index",
    "ledger",
    "replica",
    "watermark",
    "vector",
    "segment",
    "quorum",
    "lease",
    "batch",
    "chunk",
    "journal",
]
_SHARED_EVERY = 20


class Load:
    """`run` begins every id of the round. Each write is one document or turn in a request of its own."""

    def __init__(self, url: str, key: str, tls: ssl.SSLContext, run: str, seed: str, pace: Pace) -> None:
        self.history = History()
        self.run = run
        self._url, self._key, self._tls, self._pace = url, key, tls, pace
        self._seed = seed
        self._stop = threading.Event()
        self._quiet = threading.Event()
        self._recent: list[Write] = []
        self._deleted: set[str] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="load")
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Writers and readers end; a write under way is waited for."""
        self._stop.set()
        self._thread.join(3 * DEADLINE_S)
        if self._thread.is_alive():
            raise RuntimeError("a client hangs beyond its deadline")
        if self.failure is not None:
            raise self.failure

    async def _main(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._pace.writers):
                    group.create_task(self._writer(number))
                for number in range(self._pace.readers):
                    group.create_task(self._reader(number))
        except BaseException as error:
            self.failure = error

    def _client(self) -> Client:
        return Client([self._url], self._key, ssl_context=self._tls, deadline_s=DEADLINE_S)

    async def _writer(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/writer/{number}")
        mine: list[str] = []
        async with self._client() as client:
            count, due = 0, time.monotonic() + chance.uniform(0, self._pace.write_every_s)
            while not self._stop.is_set():
                if self._pace.braked or (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(_STEP_S if self._pace.braked else min(left, _STEP_S))
                    continue
                due = next_due(due, time.monotonic(), self._pace.write_every_s)
                count += 1
                token = f"zq{number}x{count}x{chance.randrange(16**6):06x}"
                kind, subject = self._next(chance, number, count, mine)
                text = self._text(chance, token, small="-small-" in subject)
                await self._write(client, Write(kind, subject, token, text, time.monotonic()))

    def _next(self, chance: random.Random, number: int, count: int, mine: list[str]) -> tuple[str, str]:
        """Every twentieth is of a document that all write. A share are turns of a few words, each of which costs the
        embeddings engine little; of the others half are new documents, and new versions, turns, deletions."""
        if count % _SHARED_EVERY == 0:
            return "document", f"{self.run}-shared-{count // _SHARED_EVERY}"
        if chance.random() < self._pace.small:
            return "turn", f"{self.run}-small-{number}-{count // _TALK}"
        what = chance.random()
        if what < 0.2:
            return "turn", f"{self.run}-talk-{number}-{count // _TALK}"
        if mine and what < 0.45:
            return "document", chance.choice(mine[-20:])
        if len(mine) > 20 and what < 0.5:
            return "deletion", mine.pop(chance.randrange(len(mine) - 10))
        mine.append(f"{self.run}-{number}-{count}")
        return "document", mine[-1]

    def _text(self, chance: random.Random, token: str, *, small: bool) -> str:
        if small:
            return f"{token} {chance.choice(_WORDS)}."
        words = " ".join(chance.choices(_WORDS, k=chance.randrange(8, 60)))
        return f"The word of this text is {token}. {words}."

    async def _write(self, client: Client, write: Write) -> None:
        self.history.writes.append(write)
        if write.kind == "deletion":
            self._deleted.add(write.subject)
        try:
            if write.kind == "turn":
                write.watermark = await client.add_turn(write.subject, "user", write.text)
            elif write.kind == "deletion":
                write.watermark = await client.delete(write.subject)
            else:
                write.watermark = await client.ingest(write.subject, write.text)
            write.outcome = ACKNOWLEDGED
        except (Unavailable, BadAnswer) as error:
            write.outcome, write.detail = UNKNOWN, str(error)[:300]
        except Refused as error:
            write.detail = str(error)[:300]
            if write.kind == "deletion" and error.status == 404:
                self.history.writes.remove(write)  # what should have been deleted was never accepted
            else:
                raise
        write.end = time.monotonic()
        if write.acknowledged and write.kind != "deletion":
            self._recent = [*self._recent[-40:], write]

    async def _reader(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/reader/{number}")
        async with self._client() as client:
            due = time.monotonic() + chance.uniform(0, self._pace.read_every_s)
            while not self._stop.is_set():
                if (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(min(left, _STEP_S))
                    continue
                due = next_due(due, time.monotonic(), self._pace.read_every_s)
                # What was deleted since must not be found, and is no matter of this reader.
                if candidates := [write for write in self._recent[-15:] if write.subject not in self._deleted]:
                    await self._read(client, chance.choice(candidates))

    async def _read(self, client: Client, write: Write) -> None:
        read = Read(write, time.monotonic())
        turn = write.kind == "turn"
        try:
            answer = await client.context(
                f"Which text has the word {write.token}?",
                token_budget=2000,
                watermark=write.watermark,
                conversation_id=write.subject if turn else None,
                document_ids=None if turn else [write.subject],
            )
        except (Unavailable, BadAnswer, Refused) as error:
            read.error = str(error)[:300]
        else:
            texts = [*(chunk["text"] for chunk in answer["chunks"]), *(each["content"] for each in answer["turns"])]
            read.found = frozenset(word.strip(".") for text in texts for word in text.split() if word.startswith("zq"))
            read.missing = any(answer["missing"].values())
            read.degraded = answer["degraded"]
        read.end = time.monotonic()
        if write.subject not in self._deleted:
            self.history.reads.append(read)
