"""The chaos run's parts that need no lab: faults' table, what replicas say, pace, report."""

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from tests.chaos.pbml import run
from tests.chaos.pbml.attempts import ACKNOWLEDGED, History, Write
from tests.chaos.pbml.checker import judge
from tests.chaos.pbml.document_faults import big_text
from tests.chaos.pbml.faults import FAULTS
from tests.chaos.pbml.load import Load
from tests.chaos.pbml.local_faults import DEPLOYED
from tests.chaos.pbml.pace import Brake, Pace, next_due
from tests.chaos.pbml.platform import TimeToLive
from tests.chaos.pbml.replicas import Answer, Digest, differ, samples, value
from tests.chaos.pbml.report import table
from tests.chaos.pbml.rounds import Result, percentile
from tests.chaos.pbml.scene import settle

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_faults_of_a_run() -> None:
    plain = run.chosen("all", local=False, away_s=7)
    assert {fault.name for fault in plain} == {name for name, fault in FAULTS.items() if not fault.local}
    assert [fault.name for fault in run.chosen("", local=True, away_s=7)] == list(FAULTS)
    [away] = run.chosen("replica_away", local=True, away_s=3600)
    assert away.hold == 3600
    with pytest.raises(ValueError, match="unknown fault nonsense"):
        run.chosen("none,nonsense", local=True, away_s=7)
    with pytest.raises(ValueError, match="only with --local"):
        run.chosen("spool_disk_full", local=False, away_s=7)


def test_the_modes_rounds_are_told_apart(tmp_path) -> None:
    results = tmp_path / "results"
    assert run.known(results) == set()
    old = '{"commit": "c", "fault": "none", "seed": 1, "round": 2}\n'
    results.write_text(old + '{"commit": "c", "fault": "none", "seed": 1, "round": 2, "local": true}\n')
    assert run.known(results) == {("c", False, "none", 1, 2), ("c", True, "none", 1, 2)}


def test_the_modes_variables_are_the_roles() -> None:
    defaults = (run.ROOT / "roles" / "pbml" / "defaults" / "main.yml").read_text()
    assert all(f"\n{name}:" in defaults for name in DEPLOYED)


def test_items_are_documents_and_turns_and_local_ones_are_counted() -> None:
    turn = Write("turn", "talk", "zq1", "text 1", 0, 1, ACKNOWLEDGED, "spool:lab3:ab")
    deletion = Write("deletion", "gone", "zq2", "", 0, 1, ACKNOWLEDGED, "pg:2")
    verdict = judge(History([turn, deletion]), [])
    assert (verdict.acknowledged, verdict.deletions, verdict.local, verdict.lost) == (1, 1, 1, 2)


def test_what_a_write_was_told() -> None:
    taken, refused = (Write("document", "d", "zq", "text", 0) for _ in range(2))
    settle(taken, Answer(202, '{"watermark": "spool:lab3:ab"}'))
    settle(refused, Answer(503, '{"error": {"code": "spool_full"}}'))
    assert (taken.acknowledged, taken.local, taken.seq) == (True, True, None)
    assert not refused.acknowledged
    assert "spool_full" in refused.detail


def test_metrics_are_read_by_name_and_labels() -> None:
    page = (
        "# TYPE pbml_spool_refused_total counter\n"
        'pbml_spool_refused_total{reason="full"} 3.0\npbml_spool_refused_total{reason="unusable"} 0.0\n'
        "# TYPE pbml_spool_entries gauge\npbml_spool_entries 2.0\n"
    )
    found = samples(page)
    assert value(found, "pbml_spool_refused_total", reason="full") == 3
    assert value(found, "pbml_spool_entries") == 2
    assert value(found, "pbml_spool_parked_entries") == 0


def test_digests_are_equal_only_where_all_say_the_same_of_a_later_moment() -> None:
    one = Digest("aa" * 32, 5, NOW)
    later = Digest("aa" * 32, 5, NOW + timedelta(seconds=1))
    assert differ({"a": one, "b": later}, NOW) == ""
    assert "gives no digest" in differ({"a": one, "b": None}, NOW)
    assert "is as of" in differ({"a": one, "b": later}, NOW + timedelta(microseconds=1))
    assert "differ" in differ({"a": one, "b": Digest("bb" * 32, 5, NOW)}, NOW)
    assert "differ" in differ({"a": one, "b": Digest("aa" * 32, 6, NOW)}, NOW)


def test_a_writer_does_not_make_up_for_an_outage() -> None:
    assert next_due(10.0, 10.1, 0.5) == 10.5
    assert next_due(10.0, 25.0, 0.5) == 25.0


def test_the_brake_follows_the_backlog_and_keeps_its_last_look() -> None:
    pace, looks, over = Pace(backlog=10), [50, None, None], threading.Event()

    def look() -> int | None:
        if not looks:
            over.set()
            return None
        return looks.pop(0)

    with Brake(pace, look, every_s=0.01) as brake:
        assert over.wait(10)
    assert pace.braked
    assert brake.most == 50


def test_the_large_document_has_its_size() -> None:
    text = big_text("zqbig", 10_000)
    assert len(text.encode()) == 10_000
    assert text.startswith("The word of this text is zqbig.")
    assert "\n\n" in text


def test_percentiles() -> None:
    times = [TimeToLive(1, 0.0, float(n)) for n in range(100)]
    assert (percentile(times, 0.5), percentile(times, 0.95), percentile(times[:1], 0.95)) == (50, 95, 0)


def test_the_table_has_old_records_too() -> None:
    old = {
        "commit": "c", "fault": "none", "seed": 1, "round": 1, "load": 7.0, "stall_s": 1.0, "recover_s": 8.0,
        "verdict": {
            "acknowledged": 189, "unknown": 0, "lost": 0, "doubled": 0, "reads": 36, "stale": 0, "incomplete": 0,
            "unanswered": 0,
        },
    }  # fmt: skip
    new = Result("replica_away", 1, 1, 2.0, local=True, repeats=5, hold_s=30, writing_s=100, recover_s=4, digests_s=9)
    new.verdict.acknowledged = 3000
    new.notes["big_live_s"] = 3
    made = table([old, {"commit": "d", **new.as_dict()}])
    [all_of_it] = [line for line in made.splitlines() if line.startswith("| all ")]
    assert all_of_it.startswith("| all | 2 (6) | 3189 | 30.0 | 0 | 0 | 0 | 0 |")
    assert "- replica_away #1, held 30 s: {'big_live_s': 3}" in made
    widths = {line.count("|") for line in made.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert table([]) == "Not run yet."


class PretendedPbml:
    """Acknowledges everything at once, in a thread of its own."""

    def __init__(self) -> None:
        self.seq = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def _any(self, request: web.Request) -> web.Response:
        await request.read()
        if request.path == "/v1/context":
            return web.json_response({"chunks": [], "turns": [], "missing": {"unindexed": 1}, "degraded": False})
        self.seq += 1
        return web.json_response({"watermark": f"pg:{self.seq}", "durability": "quorum"}, status=202)

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._any)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    def __enter__(self) -> "PretendedPbml":
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    def __exit__(self, *_error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def test_clients_of_a_pretended_pbml_keep_their_rate_and_obey_the_brake() -> None:
    pace = Pace(rate=60, writers=6, reads=4, readers=1)
    with PretendedPbml() as pretended:
        load = Load(pretended.url, "key", None, "run", "seed", pace)  # type: ignore[arg-type]
        load.start()
        time.sleep(3)
        pace.waiting = pace.backlog + 1
        time.sleep(0.5)
        written = len(load.history.writes)
        time.sleep(0.5)
        braked = len(load.history.writes)
        load.stop()
    assert braked == written
    assert 60 < written < 60 * 3.5 + 6
    small = [write for write in load.history.writes if "-small-" in write.subject]
    assert 0.4 < len(small) / written < 0.9
    assert all(write.kind == "turn" and len(write.text) < 40 for write in small)
    assert load.history.reads
    assert all(write.acknowledged for write in load.history.writes)
