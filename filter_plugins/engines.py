"""Filters of the roles llamacpp and qwen: which engines a host runs, and whom an instance asks first."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

_NAME = re.compile(r"[a-z]+\Z")
_REQUIRED = frozenset({"groups", "artifact", "alias", "mode", "port", "context", "parallel"})
_DEFAULTS = {"max_answer": -1, "surge_port": 0}


def engines_of(instances: Mapping[str, Mapping[str, Any]], group_names: Iterable[str]) -> list[dict[str, Any]]:
    """The entries of llamacpp_instances that a host of these groups runs, each with its `name`, by name.

    Raises AnsibleFilterError naming the entry and what is wrong with it.
    """
    mine = set(group_names)
    ports: dict[int, str] = {}
    found = []
    for name, entry in sorted(instances.items()):
        where = f"llamacpp_instances.{name}"
        if not _NAME.match(name):
            raise AnsibleFilterError(f"{where}: a name has lower-case letters only.")
        if missing := _REQUIRED - set(entry):
            raise AnsibleFilterError(f"{where}: {', '.join(sorted(missing))} missing.")
        for key in sorted(set(entry) - _REQUIRED - set(_DEFAULTS)):
            close = difflib.get_close_matches(key, [*_REQUIRED, *_DEFAULTS], 1)
            raise AnsibleFilterError(f"{where}: unknown key {key!r}{f', did you mean {close[0]!r}?' if close else '.'}")
        if entry["mode"] not in ("chat", "embed"):
            raise AnsibleFilterError(f"{where}: mode is {entry['mode']!r}, not chat or embed.")
        if not mine & set(entry["groups"]):
            continue
        engine = {**_DEFAULTS, **entry, "name": name}
        for key in ("port", "surge_port"):
            engine[key] = int(engine[key])
            if engine[key] and engine[key] in ports:
                raise AnsibleFilterError(f"{where}: {key} {engine[key]} is {ports[engine[key]]}'s already.")
            ports[engine[key]] = name
        found.append(engine)
    return found


def _model_path(artifact: str, model: Mapping[str, Any], models_dir: str) -> str:
    return f"{models_dir}/{artifact}/{model['release']}/{model['file']}"


def model_artifacts(
    names: Iterable[str], fetched: Mapping[str, Mapping[str, Any]], models_dir: str
) -> list[dict[str, str]]:
    """The `artifacts` of artifact_install for these models. `fetched` is what artifact_fetch returned."""
    return [
        {"src": model["path"], "path": _model_path(name, model, models_dir), "sha256": model["sha256"]}
        for name, model in ((name, fetched[name]) for name in names)
    ]


def engine_files(
    engines: Iterable[Mapping[str, Any]],
    fetched: Mapping[str, Mapping[str, Any]],
    config_dir: str,
    models_dir: str,
    shared: Mapping[str, Any],
) -> list[dict[str, str]]:
    """The environment file of each engine and of its stand-in (see stand_ins). `fetched` is what artifact_fetch
    returned, `shared` holds further LLAMACPP_* variables, without the prefix."""
    engines = list(engines)
    files = []
    for engine in [*engines, *stand_ins(engines)]:
        model = fetched[engine["artifact"]]
        settings = {
            "MODEL": _model_path(engine["artifact"], model, models_dir),
            **{name.upper(): engine[name] for name in ("alias", "mode", "port", "context", "parallel", "max_answer")},
            **shared,
        }
        text = "".join(f"LLAMACPP_{name}={value}\n" for name, value in settings.items())
        files.append(
            {"path": f"{config_dir}/{engine['name']}.env", "content": f"# Managed by Ansible (role llamacpp).\n{text}"}
        )
    return files


def stand_ins(engines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Engines that run only while a rolling update replaces the one they stand in for: those with a `surge_port`."""
    return [
        {**engine, "name": f"{engine['name']}-surge", "port": engine["surge_port"]}
        for engine in engines
        if engine["surge_port"]
    ]


def engine_units(
    engines: Iterable[Mapping[str, Any]], config_dir: str, marker: str, patience: int
) -> list[dict[str, Any]]:
    """The engines as units for the module service_units. An engine reads its environment and its release at the start;
    a new model has a new path, and so comes by the environment."""
    return [
        {
            "name": f"llamacpp@{engine['name']}.service",
            "enabled": True,
            "restart_on": [f"{config_dir}/{engine['name']}.env", marker],
            "wait_for": {"url": f"http://127.0.0.1:{engine['port']}/health", "timeout": int(patience)},
        }
        for engine in engines
    ]


def nearest_first(hosts: list[str], host: str, siblings: list[str]) -> list[str]:
    """`hosts` in the order in which `host` should ask them: itself first where it is one of them; else the list turned
    by its place among its siblings, so that they do not all ask the same one."""
    if host in hosts:
        start = hosts.index(host)
    elif host in siblings and hosts:
        start = siblings.index(host) % len(hosts)
    else:
        start = 0
    return [*hosts[start:], *hosts[:start]]


def qwen_models(chat: str, embedding: str, ports: Mapping[str, int], group_names: Iterable[str]) -> dict[str, Any]:
    """What clients may ask a QWEN for, by name. On a host of group vllm its GPUs serve the chat model, and llama.cpp
    the one that is asked where they fail, under a name of its own (`NAME-cpu`, see cpu_alias)."""
    engine = {name: {"url": f"http://127.0.0.1:{ports[port]}"} for name, port in (
        ("cpu", "llamacpp_chat"), ("embed", "llamacpp_embed"), ("gpu", "vllm"))}  # fmt: skip
    models: dict[str, Any] = {embedding: {**engine["embed"], "kind": "embedding"}}
    second = cpu_alias(chat, group_names)
    if second == chat:
        return {chat: engine["cpu"], **models}
    return {chat: {**engine["gpu"], "secondary": second}, second: engine["cpu"], **models}


def cpu_alias(chat: str, group_names: Iterable[str]) -> str:
    """The name of llama.cpp's chat model on a host of these groups."""
    return f"{chat}-cpu" if "vllm" in set(group_names) else chat


def tenant_digests(
    keys: Mapping[str, str], budgets: Mapping[str, Mapping[str, int]] | None = None
) -> list[dict[str, str | int]]:
    """vault_api_keys ({tenant: key}) as tenants.json holds them: digests, never the keys, and the token budgets."""
    found = budgets or {}
    return [
        {
            "tenant": tenant,
            "key_sha256": hashlib.sha256(str(key).encode()).hexdigest(),
            **{limit: int(tokens) for limit, tokens in sorted(found.get(tenant, {}).items())},
        }
        for tenant, key in sorted(keys.items())
    ]


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "engine_files": engine_files,
            "model_artifacts": model_artifacts,
            "engine_units": engine_units,
            "stand_ins": stand_ins,
            "cpu_alias": cpu_alias,
            "engines_of": engines_of,
            "nearest_first": nearest_first,
            "qwen_models": qwen_models,
            "tenant_digests": tenant_digests,
        }
