"""What `make chaos-qwen` reads of the hosts, what it does to processes, and what it writes."""

import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.errors import LabError
from tests.chaos.qwen import faults, report, run
from tests.chaos.qwen.deployed import breaker_states, in_service
from tests.chaos.qwen.expect import EXPECTED
from tests.chaos.qwen.faults import FAULTS, Scene, Throttle

STAT = """# pxname,svname,qcur,status,weight
clients,FRONTEND,,OPEN,
qwen,lab1,0,UP,1
qwen,lab2,0,UP 1/2,1
qwen,lab3,0,DOWN 12/30,1
qwen,lab1-last,0,no check,1
qwen,BACKEND,0,UP,3
pbml,lab4,0,UP,1
"""


def test_in_service_is_up_and_not_on_its_way() -> None:
    assert in_service(STAT) == {"lab1"}
    assert in_service(STAT, "pbml") == {"lab4"}
    assert in_service("") == set(), "a gateway that does not say is not known to send anything"


def test_breakers_are_read_from_the_metrics() -> None:
    page = (
        "# HELP devmentor_qwen_breaker_state 0 closed\n# TYPE devmentor_qwen_breaker_state gauge\n"
        'devmentor_qwen_breaker_state{model="a"} 0.0\ndevmentor_qwen_breaker_state{model="b"} 2.0\n'
    )
    assert breaker_states(page) == [0.0, 2.0]
    assert breaker_states("") == []


def spent(pid: int) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_throttle_slows_a_process_and_lets_it_go_on() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            time.sleep(0.3)
            throttle = Throttle(process.pid, runs_s=0.01, stands_s=0.19)
            throttle.start()
            before = spent(process.pid)
            time.sleep(2.0)
            assert spent(process.pid) - before < 0.6
            throttle.end()
            assert not throttle.lost
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            assert state != "T"
        finally:
            process.kill()


def test_a_throttle_whose_process_ended_says_so() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        throttle = Throttle(process.pid, runs_s=0.01, stands_s=0.05)
        throttle.start()
        process.kill()
        process.wait()
        time.sleep(0.3)
        throttle.end()
    assert throttle.lost
    scene = Scene(deployed=SimpleNamespace(), chance=random.Random(1), throttle=throttle)  # type: ignore[arg-type]
    with pytest.raises(LabError, match="ended while it was slowed"):
        faults.let_engine_run(scene)


def test_the_redirect_is_one_that_nft_takes(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text(faults.REDIRECT.replace('"qwen"', '"nobody"'))
    done = subprocess.run(["unshare", "-n", "nft", "-f", str(rules)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class PretendedHost:
    """Takes commands and keeps them."""

    def __init__(self, name: str) -> None:
        self.name, self.commands = name, []

    def execute(self, command: list[str], **_more: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")


def pretended_scene() -> tuple[Scene, dict[str, PretendedHost]]:
    hosts = {name: PretendedHost(name) for name in ("lab1", "lab2", "lab3")}
    deployed: Any = SimpleNamespace(
        names=lambda _group: list(hosts),
        hosts=lambda _group: list(hosts.values()),
        lab=SimpleNamespace(host=hosts.__getitem__),
    )
    return Scene(deployed, random.Random(1)), hosts


@pytest.mark.parametrize("name", ["valkey_one", "pbml_one", "qdrant_one"])
def test_a_fault_of_one_host_is_undone_on_that_host_on_pretended_hosts(name: str) -> None:
    scene, hosts = pretended_scene()
    FAULTS[name].do(scene)
    hit = [host for host in hosts.values() if host.commands]
    assert [host.name for host in hit] == scene.notes
    FAULTS[name].undo(scene)
    assert [host.name for host in hosts.values() if host.commands] == scene.notes
    assert ["systemctl", "start", "--no-block"] in [command[:3] for command in hit[0].commands]


# The others start what runs already.
ONE_HOST = [name for name in FAULTS if name not in ("engine_erring", "engines_dead") and not name.endswith("_all")]


@pytest.mark.parametrize("name", ONE_HOST)
def test_undoing_what_was_not_done_does_nothing_on_pretended_hosts(name: str) -> None:
    scene, hosts = pretended_scene()
    FAULTS[name].undo(scene)
    assert not any(host.commands for host in hosts.values())


def entry(fault: str, **more: Any) -> dict[str, Any]:
    return {
        "fault": fault, "text": "what it is", "seed": 1, "round": 1, "rate": 5.0, "commit": "abc", "load": [1.0, 2.0],
        "where": ["lab2"], "behind_s": 0.01, "requests": 100, "ok": 98, "served_by": {"engine": 90, "degraded": 8},
        "errors": {"503 engine_unavailable": 2}, "degraded_context": 3, "worst_gap_s": 2.5, "recovery_s": 31.0,
        "problems": [], **more,
    }  # fmt: skip


def test_the_table_has_the_worst_of_all_rounds() -> None:
    rounds = [entry("engines_dead"), entry("engines_dead", recovery_s=40.0, problems=["x"]), entry("none")]
    text = report.table(rounds)
    assert text.index("`none`") < text.index("`engines_dead`"), "in the table's own order"
    assert (
        "| `engines_dead`: what it is | 2 | 200 | 196 | engine 180, degraded 16 | 503 engine_unavailable 4 | 6 | 2.5 "
        "| 40.0 | 1 |" in text
    )
    assert "| never |" in report.table([entry("none", recovery_s=None), entry("none")])


def test_the_page_says_what_the_checker_allows() -> None:
    page = report.PAGE.read_text()
    between = page.partition("<!-- expectations: begin -->\n")[2].partition("\n<!-- expectations: end -->")[0]
    assert between == report.expectations(), "run `python -m tests.chaos.qwen.report`"
    assert all(f"`{name}`" in between for name in EXPECTED)
    assert "| `none`: what it is | 1 | 100 | 98 |" in report.written(page, [entry("none")])


def test_an_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--fault", "earthquake"])
    assert "unknown fault earthquake" in capsys.readouterr().err
