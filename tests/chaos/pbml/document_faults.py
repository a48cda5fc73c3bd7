"""Faults that are made of documents: one at two replicas, a large one, and a replica that misses what is written."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from devmentor.pbml.client import BadAnswer, Client, Refused, Unavailable
from lab.errors import LabError
from tests.chaos.pbml.attempts import ACKNOWLEDGED, Write
from tests.chaos.pbml.scene import API, WORKER, Scene, settle

_PAIRS = 20
BIG_BYTES = 10_000_000
_BIG_DEADLINE_S = 120.0
_SENTENCE = "Section {number} says that the {word} of the ledger is written before the index, and why that is so. "
_WORDS = ("replica", "watermark", "segment", "quorum", "lease", "batch", "journal")


def same_document(scene: Scene) -> None:
    """In turn two texts at once, which are two versions, and one text with one key, which is one."""
    first, second = scene.chance.sample(scene.platform.hosts, 2)
    for number in range(_PAIRS):
        subject = f"{scene.run}-both-{number // 4}"
        with ThreadPoolExecutor(2) as pool:
            if number % 2:
                _once(scene, pool, scene.draft(subject), (first, second))
            else:
                drafts = [scene.draft(subject), scene.draft(subject)]
                list(pool.map(scene.deliver, drafts, (first, second)))


def _once(scene: Scene, pool: ThreadPoolExecutor, write: Write, names: tuple[str, str]) -> None:
    answers = list(pool.map(lambda name: scene.send(write, name, write.token), names))
    taken = [answer for answer in answers if answer.status == 202]
    settle(write, (taken or answers)[0])
    if len({answer.json["watermark"] for answer in taken}) > 1:
        raise LabError(
            f"{write.subject}: one Idempotency-Key has two watermarks: {[answer.text for answer in taken]}",
            "read pbml/store/idempotency.py",
        )


def big_text(token: str, size: int = BIG_BYTES) -> str:
    """ASCII of exactly `size` bytes, in paragraphs."""
    parts, length, number = [f"The word of this text is {token}.\n\n"], 0, 0
    while length < size:
        number += 1
        words = (_WORDS[(number + shift) % len(_WORDS)] for shift in range(6))
        parts.append("".join(_SENTENCE.format(number=number, word=word) for word in words) + "\n\n")
        length += len(parts[-1])
    return "".join(parts)[:size]


def big_document(scene: Scene) -> None:
    """Through the gateway, as a client does."""
    write = scene.draft(f"{scene.run}-big")
    write.text = big_text(write.token)
    write.start = time.monotonic()
    asyncio.run(_ingest(scene, write))
    scene.notes["big_acknowledged_s"] = round(write.end - write.start, 1)


async def _ingest(scene: Scene, write: Write) -> None:
    platform = scene.platform
    client = Client([platform.url], platform.key, ssl_context=platform.tls(), deadline_s=_BIG_DEADLINE_S)
    async with client:
        try:
            write.watermark = await client.ingest(write.subject, write.text)
            write.outcome = ACKNOWLEDGED
        except (Unavailable, BadAnswer, Refused) as error:
            write.detail = str(error)[:300]
            raise LabError(f"the document of 10 MB was not acknowledged: {write.detail}") from error
        finally:
            write.end = time.monotonic()


def others_went_on(scene: Scene) -> str:
    """What came after the large document must not wait for it."""
    times = scene.platform.times_to_live(scene.run)
    if times is None:
        return "the ledger does not say when what was live"
    big = [each for each in times if each.size >= BIG_BYTES]
    if len(big) != 1:
        return f"{len(big)} documents of 10 MB are live"
    ended = big[0].received + big[0].seconds
    beside = sorted(each.seconds for each in times if big[0].received < each.received < ended and each.size < BIG_BYTES)
    scene.notes["big_live_s"] = round(big[0].seconds, 1)
    if not beside:
        return "nothing was written beside the large document"
    late = beside[len(beside) * 95 // 100]
    scene.notes["beside_live_s"] = {
        "count": len(beside),
        "p50": round(beside[len(beside) // 2], 2),
        "p95": round(late, 2),
        "most": round(beside[-1], 2),
    }
    return "" if late < big[0].seconds else "others waited for the large document"


def stop_replica(scene: Scene) -> None:
    scene.host.execute(["systemctl", "stop", API, WORKER])


def start_replica(scene: Scene) -> None:
    scene.host.execute(["systemctl", "start", API, WORKER], check=False)
