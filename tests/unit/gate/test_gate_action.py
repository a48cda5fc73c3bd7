"""The action plugin in real ansible-playbook runs: plan and secrets come from the inventory; bad input ends it."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import yaml
from gate_doubles import free_port, serving

from tools.runs import Run, run

GROUPS = ("gateway", "qwen", "pbml", "cache", "qdrant", "postgres", "pgbouncer")


def play(tmp_path: Path, tasks: list[dict[str, Any]], *arguments: str, **variables: Any) -> Run:
    """Tasks on h1 of a platform of two hosts; h2 is never reached."""
    hosts = {
        "h1": {"ansible_connection": "local", "devmentor_address": "127.0.0.1", "zone": "a"},
        "h2": {"ansible_host": "127.0.0.9", "zone": "b"},
    }
    secrets = {
        "vault_postgres_pbml_password": "pw-geheim",
        "vault_cache_password": "ca-geheim",
        "vault_qdrant_read_only_api_key": "qd-geheim",
        "vault_api_keys": {"tenant": "sk-geheim"},
    }
    children: dict[str, Any] = {group: {"hosts": {"h1": {}, "h2": {}}} for group in GROUPS}
    children["monitoring"] = {"hosts": {"h2": {}}}  # on h1, verify would wait for the slowest scrape
    inventory = {"all": {"hosts": hosts, "vars": {**secrets, **variables}, "children": children}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    named = [{"name": f"Task {number}", **task} for number, task in enumerate(tasks)]
    book = [{"name": "Gate", "hosts": "h1", "gather_facts": False, "tasks": named}]
    (tmp_path / "gate.yml").write_text(yaml.safe_dump(book))
    return run(
        "ansible-playbook", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "gate.yml"), *arguments, timeout=180
    )


def test_a_canary_and_a_named_secret_get_them_from_inventory_and_roles(tmp_path: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    def respond(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        seen.append((request.path, request.headers["Authorization"]))
        answer = {
            "data": [{"id": "small"}],
            "choices": [{"message": {"content": "word"}}],
            "usage": {"completion_tokens": 1},
        }
        return 200, json.dumps(answer).encode()

    with serving(respond) as url:
        checks = [
            {"name": "token", "type": "canary", "of": "engine", "base": url},
            {"name": "front", "type": "http", "url": f"{url}/ready", "bearer_from": "api_key"},
            {"name": "own", "type": "http", "url": f"{url}/own", "bearer_from": "mine"},
        ]
        gate = {"checks": checks, "secrets": {"mine": "my-geheim"}}
        done = play(tmp_path, [{"health_gate": gate, "register": "gate"}, {"ansible.builtin.debug": {"var": "gate"}}])
    done.require()
    assert "1 tokens of small" in done.output
    assert ("/ready", "Bearer sk-geheim") in seen
    assert ("/own", "Bearer my-geheim") in seen
    assert "geheim" not in done.output
    assert done.changed() == {}


def test_without_the_inventorys_secrets_no_canary_is_asked(tmp_path: Path) -> None:
    gate = {"checks": [{"name": "token", "type": "canary", "of": "engine"}]}
    done = play(tmp_path, [{"health_gate": gate}], vault_api_keys={})
    assert done.status != 0
    assert "health_gate: no plan could be made of host h1: qwen_api_keys is empty" in done.output


def test_checks_that_bring_what_they_need_need_no_platform(tmp_path: Path) -> None:
    gate = {"checks": [{"name": "door", "type": "tcp", "host": "127.0.0.1", "port": free_port()}], "report_only": True}
    play(tmp_path, [{"health_gate": gate}], "--check", vault_api_keys={}).require()


def test_bad_input_ends_it_by_name(tmp_path: Path) -> None:
    gate = {"checks": [{"name": "door", "type": "tcp", "host": "127.0.0.1"}]}
    done = play(tmp_path, [{"health_gate": gate}])
    assert done.status != 0
    assert "health_gate: check 'door': port: is missing. Remedy: " in done.output


def test_verify_makes_the_same_plan(tmp_path: Path) -> None:
    tasks = [
        {"platform_check": {"run": "abc", "patience": 0}, "register": "v"},
        {"ansible.builtin.debug": {"var": "v"}},
    ]
    done = play(tmp_path, tasks)
    done.require()
    assert "no plan could be made" not in done.output
    assert "component: embeddings" in done.output
    assert "geheim" not in done.output
