"""The callback in real runs of ansible-playbook."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import ansible_runner
import pytest

from tests.integration.secrecy import shown
from tests.unit.report.report_runs import HERE, HOSTS, Reported, inventory, reported
from tools.runs import ROOT, environment

COUNTS = ("ok", "changed", "failed", "unreachable", "skipped", "rescued", "ignored")
ONE_TASK = "- name: (1/1) Only\n  hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.debug: {msg: x}\n"


@pytest.fixture
def one_task(tmp_path: Path) -> Path:
    path = tmp_path / "one.yml"
    path.write_text(ONE_TASK)
    return path


def test_hosts_are_counted_as_in_ansibles_recap(big_run: Reported) -> None:
    assert big_run.run.status != 0
    told = {row["host"]: {name: row[name] for name in COUNTS} for row in big_run.document()["hosts"]}
    assert told == big_run.run.recap()
    assert {row["host"]: row["result"] for row in big_run.document()["hosts"]} == {
        "web1": "changed", "web2": "failed", "db1": "ok",
    }  # fmt: skip


def test_phases_are_said_when_they_end_and_at_the_end(big_run: Reported) -> None:
    output = big_run.run.output
    first = output.index("phase  (1/3) Preflight")
    assert output.index("PLAY [(1/3) Preflight") < first < output.index("PLAY [(2/3) Roll]")
    assert "ok 2  changed 1  failed 0  unreachable 0" in output[first:].splitlines()[0]
    table = output.partition("PHASES ***")[2]
    assert [line.split()[0] for line in table.splitlines() if line.startswith("(")] == ["(1/3)", "(2/3)", "(3/3)"]
    assert "Never" not in table
    assert f"Report: {big_run.path('html')} (and .json)" in table


def test_a_hosts_turn_is_said_when_it_is_over(big_run: Reported) -> None:
    lines = [line for line in big_run.run.output.splitlines() if line.startswith("step ")]
    assert [line.split()[1:5] for line in lines] == [["qwen", "on", host, "done"] for host in ("web1", "web2")]


def test_output_without_a_terminal_has_no_control_characters(big_run: Reported) -> None:
    own = big_run.run.output.partition("PHASES ***")[2]
    assert own
    assert all(char.isprintable() or char == "\n" for char in own)


def test_what_the_run_did_is_in_the_report(big_run: Reported) -> None:
    document = big_run.document()
    assert (document["schema"], document["version"], document["run"]["state"]) == ("devmentor-run-report", 1, "failed")
    assert document["run"]["options"] == {"inventory": ["hosts.json"], "diff": True, "tier": "qwen"}
    assert [phase["hosts"] for phase in document["phases"]] == [3, 2, 3, 0]
    assert [(step["tier"], step["host"], step["result"]) for step in document["steps"]] == [
        ("qwen", "web1", "done"), ("qwen", "web2", "done"),
    ]  # fmt: skip
    assert document["versions"] == [
        {"host": host, "component": "qwen", "before": "20261101-aaaa", "after": "20261126-bbbb"}
        for host in ("web1", "web2")
    ]
    assert [gate["passed"] for gate in document["gates"]] == [True, False] * 2
    assert document["gates"][1]["checks"] == [
        {"name": "replica", "type": "postgres", "result": "unknown", "evidence": "no answer within 5 s"}
    ]
    assert document["baselines"][0]["numbers"] == {"p95_s": 0.213, "before.p95_s": 0.194, "requests": 4021}
    assert 0 < len(document["slowest_tasks"]) <= 10
    assert document["slowest_tasks"][0]["seconds"] >= document["slowest_tasks"][-1]["seconds"]


def test_failures_have_their_message_or_say_that_it_is_hidden(big_run: Reported) -> None:
    told = {(row["host"], row["task"]): (row["handled"], row["message"]) for row in big_run.document()["failures"]}
    assert told["web1", "Ignored"] == ("ignored", "ignored <script>alert('message')</script>")
    assert told["web1", "Wrong"] == ("rescued", "wrong [31m, with (hidden) in it")
    assert told["db1", "Hidden failure"] == ("ignored", "(hidden by no_log)")
    assert told["web1", "Items, one of them hidden"] == ("ignored", "item (hidden) failed")
    assert "is undefined" in told["web1", "Template that is wrong"][1]
    assert told["web2", "Name with (hidden)"] == ("", "password=(hidden) postgres://app:(hidden)@db/x")


@pytest.mark.parametrize("kind", ["html", "json"])
def test_neither_secret_nor_source_is_in_the_report(big_run: Reported, kind: str) -> None:
    content = big_run.path(kind).read_text(encoding="utf-8")
    assert "web1" in content
    forms = [big_run.secret, big_run.secret.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")]
    forms += [json.dumps(big_run.secret)[1:-1], big_run.secret[6:-1]]
    assert not shown({"secret": forms, "extra variable": "hunter2hunter2"}, content)
    for source in ("source-marker", "{{", "gather_facts", "module_args", "invocation", str(HERE)):
        assert source not in content


def test_names_and_messages_are_text_in_the_page(big_run: Reported) -> None:
    page = big_run.path("html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(&quot;play&quot;)&lt;/script&gt;" in page
    assert "<img" not in page
    assert "<b>more" not in page


def test_a_directory_that_cannot_be_written_is_said_and_fails_nothing(one_task: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = reported(one_task, tmp_path, DEVMENTOR_REPORT_DIR=str(tmp_path / "file" / "reports"))
    assert done.run.status == 0
    assert f"No report of this run: {tmp_path}/file/reports cannot be written" in done.run.output
    assert "Remedy: set DEVMENTOR_REPORT_DIR" in done.run.output


def test_without_the_vaults_password_no_report_is_written_and_that_is_said(one_task: Path, tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "all.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n3030\n")
    ended = reported(one_task, tmp_path)
    assert ended.run.status != 0
    assert "No report of this run: the secrets to keep out of it cannot be read (" in ended.run.output
    assert "Traceback" not in ended.run.output
    assert not ended.directory.exists()


def test_options_that_matter_are_in_the_report(one_task: Path, tmp_path: Path) -> None:
    done = reported(one_task, tmp_path, "--check", "--limit", "web1,db1", "--tags", "all,x", "--skip-tags", "y")
    assert done.run.status == 0
    assert done.document()["run"]["options"] == {
        "inventory": ["hosts.json"], "tags": ["x"], "skip_tags": ["y"], "limit": "web1,db1", "check": True,
    }  # fmt: skip
    assert "check mode: nothing was changed" in done.path("html").read_text()


def test_an_interrupted_run_has_a_report(tmp_path: Path) -> None:
    playbook, begun = tmp_path / "slow.yml", tmp_path / "begun"
    playbook.write_text(ONE_TASK + f"    - name: Slow\n      ansible.builtin.shell: touch {begun}; sleep 60\n")
    command = ["ansible-playbook", "-i", str(inventory(tmp_path)), str(playbook)]
    env = environment(DEVMENTOR_REPORT_DIR=str(tmp_path / "reports"))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    [path] = (tmp_path / "reports").glob("*.json")
    document = json.loads(path.read_text())
    assert document["run"]["state"] == "interrupted"
    assert [row["ok"] for row in document["hosts"]] == [1] * len(HOSTS)
    assert output.count("Report: ") == 1


def test_ansible_runner_shows_the_table_and_has_the_report(one_task: Path, tmp_path: Path) -> None:
    """As AWX does. It sets aside ansible.cfg's directory of callbacks: the one beside the playbook is left."""
    (tmp_path / "callback_plugins").symlink_to(ROOT / "playbooks" / "callback_plugins")
    wanted = environment(DEVMENTOR_REPORT_DIR=str(tmp_path / "reports"))
    (tmp_path / "runner").mkdir()
    done = ansible_runner.run(
        private_data_dir=str(tmp_path / "runner"), project_dir=str(ROOT), playbook=str(one_task), quiet=True,
        inventory=str(inventory(tmp_path)),
        envvars={name: wanted[name] for name in ("PATH", "ANSIBLE_CONFIG", "DEVMENTOR_REPORT_DIR")},
    )  # fmt: skip
    assert done.status == "successful"
    output = done.stdout.read()
    assert "(1/1) Only" in output.partition("PHASES ***")[2]
    assert len(list((tmp_path / "reports").glob("*.html"))) == 1


def test_a_plugin_in_both_directories_counts_once(tmp_path: Path) -> None:
    """playbooks/callback_plugins leads to callback_plugins, and both are looked through."""
    (tmp_path / "callback_plugins").symlink_to(ROOT / "callback_plugins")
    playbook = tmp_path / "one.yml"
    playbook.write_text(ONE_TASK)
    done = reported(playbook, tmp_path)
    assert done.run.output.count("PHASES ***") == 1
    assert [row["ok"] for row in done.document()["hosts"]] == [1] * len(HOSTS)


def test_reports_go_to_the_checkouts_cache_by_default() -> None:
    command = ["ansible-doc", "-t", "callback", "-j", "phases"]
    told = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
    options = json.loads(told)["phases"]["doc"]["options"]
    assert (options["report_dir"]["default"], options["report_keep"]["default"]) == ("", 30)
    assert "/.cache/" in (ROOT / ".gitignore").read_text().splitlines()
