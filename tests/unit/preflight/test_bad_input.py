"""Bad input that inventory and variables alone give away, as an operator would meet it: real runs of ansible-playbook.

The inventory is a copy of the lab's with addresses where nobody listens. What needs hosts is in
tests/integration/test_bad_input.py; every rule by itself is in test_inventory.py.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.runs import ROOT, Run, playbook, run

PROBLEM = re.compile(r"^\s*(all hosts|\S+): (.+?): (.+)\. Remedy: (.+)\.$")
ZEROS = "0" * 64


def problems(done: Run) -> list[str]:
    """The lines of preflight's message; Ansible prints a failure twice."""
    return list(dict.fromkeys(line.strip() for line in done.output.splitlines() if PROBLEM.match(line)))


@pytest.fixture(scope="module")
def secrets() -> dict[str, Any]:
    """A value for every secret that a role's defaults refer to, as playbooks/secrets.yml would have generated it."""
    text = "".join(path.read_text() for path in (ROOT / "roles").glob("*/defaults/**/*.yml"))
    names = sorted(set(re.findall(r"\bvault_\w+", text)))
    return {name: {"lab": "key-lab"} if name == "vault_api_keys" else f"secret-{name}" for name in names}


def copy_of(name: str, target: Path, secrets: dict[str, Any]) -> Path:
    files = shutil.ignore_patterns("*.generated.yml", "vault.yml", ".vault-password")
    shutil.copytree(ROOT / "inventories" / name, target, ignore=files)
    write(target, "vault", secrets)
    return target


def lab_copy(target: Path, secrets: dict[str, Any]) -> Path:
    """The lab's inventory with what `lab up` and `make models` would have added."""
    copy = copy_of("lab", target, secrets)
    hosts = yaml.safe_load((copy / "hosts.yml").read_text())["all"]["children"]["lab"]["hosts"]
    generated = {
        "lab_addresses": {host: f"192.0.2.{number}" for number, host in enumerate(hosts, 10)},
        "lab_network": "192.0.2.0/24",
        "lab_vip": "192.0.2.100",
        "lab_ssh_key": "/nonexistent",
        "lab_known_hosts": "/nonexistent",
    }
    model = {"version": "1", "sha256": ZEROS, "sources": [{"from": "file:x", "sha256": ZEROS}]}
    models = {name: {**model, "file": f"{name}.gguf"} for name in ("tiny-qwen3", "all-minilm-l6-v2")}
    write(copy, "lab.generated", generated)
    write(copy, "artifacts.generated", {"devmentor_artifacts_generated": models})
    return copy


def write(inventory: Path, name: str, content: Any) -> None:
    (inventory / "group_vars" / "all" / f"{name}.yml").write_text(yaml.safe_dump(content))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def inventory_alone(inventory: Path, *arguments: str) -> Run:
    return playbook("preflight", inventory, "--skip-tags", "machines", *arguments, timeout=300)


def test_the_labs_inventory_passes(tmp_path: Path, secrets: dict[str, Any]) -> None:
    inventory_alone(lab_copy(tmp_path / "lab", secrets)).require()


def test_the_production_example_passes_once_it_has_secrets(tmp_path: Path, secrets: dict[str, Any]) -> None:
    inventory_alone(copy_of("production", tmp_path / "production", secrets)).require()


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, secrets: dict[str, Any]) -> Run:
    """site.yml with one of each mistake."""
    copy = lab_copy(tmp_path_factory.mktemp("bad") / "lab", secrets)

    def hosts(content: dict[str, Any]) -> None:
        groups = content["all"]["children"]
        groups["lab"]["hosts"]["lab3"]["qdrant_log_level"] = ["INFO"]
        groups["qwen_standby"] = {"hosts": {"lab2": {}}}

    edit(copy / "hosts.yml", hosts)
    edit(
        copy / "group_vars" / "all" / "artifacts.yml",
        lambda content: (
            content["devmentor_artifacts"]["qdrant"].update(sha256=None),
            content["devmentor_artifacts"]["rclone"].update(sha256="abc"),
        ),
    )
    write(copy, "zz", {"qdrant_start_timeout": "soon", "postgres_bootstrap_primery": "lab1"})
    write(copy, "vault", {name: value for name, value in secrets.items() if name != "vault_cache_password"})
    return playbook("site", copy, timeout=300)


@pytest.mark.parametrize(
    "problem",
    [
        "all hosts: qdrant_start_timeout: 'soon' is str, not int. Remedy: give it a value of type int.",
        "lab3: qdrant_log_level: ['INFO'] is not one of ",
        "all hosts: postgres_bootstrap_primery: is a variable that no role knows (did you mean "
        "postgres_bootstrap_primary?). Remedy: rename it to postgres_bootstrap_primary, or remove it.",
        "lab1,lab2,lab3,lab4: vault_cache_password: the secret is missing. Remedy: make secrets INVENTORY=",
        "all hosts: devmentor_artifacts.qdrant: the entry has no sha256. Remedy: Add the sha256 of the final file",
        "all hosts: devmentor_artifacts.rclone: the entry has the sha256 'abc'. Remedy: A sha256 is 64 lower-case",
        "lab2: groups qwen and qwen_standby: exclude each other",
    ],
    ids=["type", "type-on-one-host", "unknown", "secret", "no-checksum", "malformed-checksum", "groups"],
)
def test_each_mistake_is_exactly_one_line_with_host_variable_and_remedy(refused: Run, problem: str) -> None:
    assert len([line for line in problems(refused) if line.startswith(problem)]) == 1, refused.output


def test_nothing_else_is_said_nothing_was_contacted_and_no_secret_shown(refused: Run, secrets: dict[str, Any]) -> None:
    assert refused.status != 0
    assert len(problems(refused)) == 7, problems(refused)
    assert "(2/2)" not in refused.output
    assert all(counts["ok"] == counts["changed"] == 0 for counts in refused.recap().values())
    assert not any(str(value) in refused.output for value in secrets.values())


def test_artefact_with_a_wrong_checksum_is_not_kept(tmp_path: Path) -> None:
    """Well formed and wrong: only the fetched file can tell. Nothing of it stays in the cache."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.gguf").write_bytes(b"tampered")
    entry = {"version": "1", "file": "m.gguf", "sha256": ZEROS, "sources": [{"from": "file:models/m.gguf"}]}
    entry["sources"][0]["sha256"] = ZEROS  # type: ignore[index]
    task = {"name": "Fetch", "artifact_fetch": {"artifacts": {"m": entry}, "cache_dir": str(tmp_path)}}
    play = [{"name": "Fetch", "hosts": "localhost", "gather_facts": False, "tasks": [task]}]
    (tmp_path / "fetch.yml").write_text(yaml.safe_dump(play))
    done = run("ansible-playbook", "-i", "localhost,", "-c", "local", str(tmp_path / "fetch.yml"), timeout=300)
    assert done.status != 0
    assert hashlib.sha256(b"tampered").hexdigest() in done.output, done.output
    assert "m.gguf" in done.output
    assert not list(tmp_path.glob("artifacts/m/*/m.gguf"))


@pytest.mark.parametrize("arguments", [[], ["-e", "teardown_target=production", "-e", "teardown_data=true"]])
def test_teardown_wants_the_platforms_name(tmp_path: Path, secrets: dict[str, Any], arguments: list[str]) -> None:
    done = playbook("teardown", lab_copy(tmp_path / "lab", secrets), *arguments, timeout=300)
    assert done.status != 0
    assert "-e teardown_target=lab" in done.output
    assert "Remove the host" not in done.output
