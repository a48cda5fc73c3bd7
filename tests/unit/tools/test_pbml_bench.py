"""The bench of PBML: the same texts each time, the rows that a size asks for, bars that are the issue's."""

import copy
import gzip
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devmentor.pbml.preprocess import normalise
from devmentor.pbml.settings import Settings
from tests.bench.pbml import client, corpus, report
from tests.bench.pbml.corpus import Text
from tests.bench.pbml.ledger import Material, sized, turns, versions
from tests.bench.pbml.options import SHORT_FORM, parsed
from tests.bench.pbml.vectors import cut, perturbed

BENCH = Path(corpus.__file__).parent
PROSE = "A sentence about the file system that says what a person may want to know. "


def pages(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return root


def test_each_text_is_taken_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    root = pages(
        tmp_path,
        {
            "man/man1/one.1.gz": f".SH NAME\n{PROSE * 5}",
            "man/de/man1/one.1.gz": f".SH NAME\n{PROSE * 6}",
            "doc/two/README": PROSE * 7,
            "doc/three/README": PROSE.replace(" ", "  ") * 7,
            "doc/four/README.gz": "short",
            "doc/five/copyright": PROSE * 9,
        },
    )
    found = list(corpus.texts([root]))
    assert found == list(corpus.texts([root]))
    assert sorted(text.title for text in found) == ["README", "one.1"], "no copy, no translation, nothing short"


def test_one_vendors_pages_do_not_make_the_corpus(tmp_path: Path) -> None:
    root = pages(tmp_path, {f"man/man1/tool_{n}.1": f".SH NAME\n{PROSE * 5} number {n}" for n in range(130)})
    assert len(list(corpus.texts([root]))) == 100


def test_too_few_texts_are_an_error_that_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(corpus.NoCorpus, match="install packages"):
        corpus.take(corpus.texts([tmp_path]), 3, "pages")


def test_a_manual_page_keeps_its_words_and_sections() -> None:
    source = '.TH LS 1\n.\\" not said\n.SH "EXIT STATUS"\n.B ls\n\\fBlists\\fR files \\-l\n.TP\nmore'
    assert corpus.from_roff(source).split() == ["##", "Exit", "Status", "ls", "lists", "files", "-l", "more"]


@pytest.fixture
def material() -> Material:
    documents = []
    for name in ("one", "two"):
        text = Text(name, name.title(), " ".join(f"{PROSE} This is number {n} of {name}." for n in range(60)))
        chunks, chunker = cut(text, 1000)
        documents.append((text, chunker, chunks))
    number = sum(len(chunks) for _, _, chunks in documents)
    vectors = np.random.default_rng(1).standard_normal((number, 384)).astype(np.float32)
    return Material(documents, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_a_size_has_so_many_chunks_and_no_document_twice(material: Material) -> None:
    found = list(sized(versions(material, 1), 37))
    assert sum(len(v.bodies) for v in found) == 37
    assert len({v.document_id for v in found}) == len(found)
    assert all(len(v.bodies) == len(v.sections) == len(v.vectors) for v in found)
    bodies = [body for v in found for body in v.bodies]
    assert len(set(bodies)) == len(bodies), "a copy's chunks are not their originals"


def test_a_bigger_size_goes_on_where_the_smaller_one_ended(material: Material) -> None:
    source = versions(material, 1)
    first, second = list(sized(source, 7)), list(sized(source, 13))
    names = [v.document_id for v in (*first, *second)]
    assert len(set(names)) == len(names)


def test_the_texts_themselves_come_first_with_their_own_vectors(material: Material) -> None:
    first = next(versions(material, 1))
    text, _chunker, chunks = material.documents[0]
    assert "".join(first.bodies) == normalise(text.body)
    assert np.array_equal(first.vectors, material.vectors[: len(chunks)])


def test_a_conversation_has_the_length_that_is_asked_for(material: Material) -> None:
    said = list(itertools.chain.from_iterable(turn.bodies for turn in turns(material, "talk", 5000, 1)))
    assert 20_000 <= sum(len(text.encode()) for text in said) < 21_100


def test_perturbed_vectors_are_near_and_of_length_one(material: Material) -> None:
    moved = perturbed(material.vectors, 7)
    assert np.allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-5)
    assert np.mean(np.sum(moved * material.vectors, axis=1)) == pytest.approx(0.86, abs=0.03)
    assert not np.array_equal(moved, perturbed(material.vectors, 8))


def test_the_floor_has_the_products_settings() -> None:
    s = Settings(tenants_file=None)
    assert (s.fetch_candidates, s.hnsw_ef, s.chunk_chars) == (client.LIMIT, client.EF, client.CHUNK_CHARS)
    batching = (s.embedding_batch_size, s.embedding_concurrency, s.embedding_batch_age_ms / 1000)
    assert batching == (client._BATCH, client._IN_FLIGHT, client._AGE_S)


def test_the_peer_is_pinned_by_hash_and_names_no_registry() -> None:
    lock = (BENCH / "mem0.lock").read_text()
    assert re.search(r"^mem0ai==\S+ \\$", lock, re.MULTILINE)
    assert "://" not in lock
    assert lock.count("--hash=sha256:") >= len(re.findall(r"^\S+==", lock, re.MULTILINE))


def test_the_short_form_gives_way_to_what_is_asked_for(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    options = parsed(["--short-form", "--model", str(model), "--rate", "9"])
    assert (options.sizes, options.rate) == (SHORT_FORM["sizes"], 9.0)


def times(p95: float) -> dict[str, Any]:
    return {"p50_ms": p95 / 2, "p95_ms": p95, "p99_ms": 2 * p95, "right": 10, "failed": 0, "generator_behind_ms": 1.0}


def rounds(acknowledged: float, searchable: float) -> list[dict[str, Any]]:
    cpu = {"engine": 1.0, "qdrant": 1.0, "own": 1.0}
    figures = {"acknowledged_per_s": acknowledged, "searchable_per_s": searchable, "acknowledged_p95_ms": 3.0}
    return [{**figures, "documents": 5, "failed": 0, "cpu_ms": cpu}]


def at_size(pbml: float, floor: float) -> dict[str, Any]:
    load = {"copy_s": 1.0, "words_index_s": 1.0, "rebuild_per_s": 9.0, "rebuilt": 9}
    qdrant = {"seconds": 1.0, "indexed": 9, "points": 9}
    recall = {"at": 10, "mean": 0.99}
    rest = {"load": load, "qdrant": qdrant, "recall": recall, "real_share": 1.0, "load_average": 0.1, "mended": 0}
    return {"pbml": times(pbml), "floor": times(floor), **rest}


@pytest.fixture
def result() -> dict[str, Any]:
    systems = {"pbml": rounds(50, 20), "mem0": rounds(10, 10), "floor": rounds(60, 30)}
    steady = {**times(5.0), "rate": 10.0, "searchable_p50_ms": 1.0, "searchable_p95_ms": 2.0}
    compared = {"ledger compared": 9, "index compared": 9, "missing": 0, "orphans": 0}
    talk = {"tokens": [10**4, 10**7], "turns": [1, 2], "fetches": [times(20.0), times(30.0)]}
    names = {"server_version": "15.18 (Debian)", "synchronous_standby_names": "ANY 1 (a)", "fsync": "on"}
    return {
        "commit": "abc",
        "seconds": 1.0,
        "settings": {"seed": 1, "concurrency": 2, "rounds": 1, "rate": 5.0, "seconds": 1.0, "fetch_rounds": 1},
        "machine": {"cores": 2, "memory_gib": 24.0, "load_before": 0.0},
        "versions": {"postgres": names, "standbys": 1, "qdrant": "1", "mem0": "2"},
        "ingest": {
            "quorum_waits": True,
            "kinds": {"short": {"systems": systems, "chars_each": 190.0, "chunks_each": 1.0}},
            "steady": steady,
        },
        "fetch": {
            "sizes": {"10000": at_size(30.0, 10.0), "1000000": at_size(60.0, 20.0)},
            "conversation": talk,
            "reconciled": compared,
        },
    }


def test_what_is_just_at_its_bar_is_held(result: dict[str, Any]) -> None:
    assert [held for *_, held in report.bars(result)] == [True] * 8
    assert report.verdict(result) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["ingest"]["kinds"]["short"]["systems"]["pbml"][0].update(searchable_per_s=19.0), "searchable"),
        (lambda r: r["ingest"]["kinds"]["short"]["systems"]["pbml"][0].update(acknowledged_per_s=49.0), "acknowledged"),
        (lambda r: r["fetch"]["sizes"]["1000000"]["pbml"].update(p95_ms=60.1), "times the floor's"),
        (lambda r: r["fetch"]["sizes"]["10000"]["pbml"].update(p95_ms=29.0), r"10\^6 chunks, times that at 10\^4"),
        (lambda r: r["fetch"]["sizes"]["10000"]["recall"].update(mean=0.979), "recall"),
        (lambda r: r["fetch"]["conversation"]["fetches"][1].update(p95_ms=30.1), "tokens"),
        (lambda r: r["fetch"]["conversation"]["fetches"][1].update(failed=1), "fetches failed"),
        (lambda r: r["fetch"]["reconciled"].update(missing=1), "differed"),
        (lambda r: r["fetch"]["sizes"]["10000"].update(mended=1), "mend"),
        (lambda r: r["ingest"].update(quorum_waits=False), "quorum"),
        (lambda r: r["ingest"]["steady"].update(failed=1), "documents failed"),
    ],
)
def test_what_misses_is_said_and_fails(
    result: dict[str, Any], change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = copy.deepcopy(result)
    change(worse)
    assert report.verdict(worse) == 1
    assert re.search(f"not held: .*{said}", capsys.readouterr().out)


def test_the_short_form_judges_no_speed_but_all_else(result: dict[str, Any]) -> None:
    result["ingest"]["kinds"]["short"]["systems"]["pbml"] = rounds(1, 1)
    assert report.verdict(result, speed=False) == 0
    result["fetch"]["sizes"]["10000"]["pbml"]["failed"] = 1
    assert report.verdict(result, speed=False) == 1


def test_page_and_picture_are_made_of_the_result(result: dict[str, Any], monkeypatch: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "PICTURE", tmp_path / "page.svg")
    (tmp_path / "result.json").write_text(json.dumps(result))
    report.write(tmp_path / "result.json")
    assert "| 10^6 | 100% | PBML | 30.0 | 60.0 | 120.0 | 3.00 | 0.9900 |" in page.read_text()
    assert (tmp_path / "page.svg").read_text().count("<polyline") == 6


def test_the_page_has_a_place_for_the_tables() -> None:
    assert report.PAGE.read_text().count("<!-- bench: ") == 2
