"""ExecStartPre of PostgreSQL: may it start? The standard library alone, since every start waits for it."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from devmentor_ha.client import AgentError, Client, read_cluster, read_env
from devmentor_ha.rules import Rule
from devmentor_ha.start_guard import ALLOW, CLEAR, REFUSE, Local, judge
from devmentor_ha.textfiles import format_auto_conf, parse_auto_conf

PATIENCE_S = 6.0
CALL_LIMIT_S = 1.0


def guard(env_file: Path) -> int:
    """0: start; 1: do not. Everything it says is in the unit's journal."""
    settings = {name.removeprefix("PGAGENT_"): value for name, value in read_env(env_file).items()}
    data = Path(settings["PG_DATA_DIR"])
    if not (data / "PG_VERSION").exists():
        return 0  # PostgreSQL says it better
    _clear_stale_pid(data / "postmaster.pid")
    auto = data / "postgresql.auto.conf"
    conf = parse_auto_conf(auto.read_text()) if auto.exists() else {}
    local = _local(settings, data, conf)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answers, failures = ({}, []) if local.standby else _ask(settings)
        verdict, why = judge(local, answers, failures)
        if verdict != REFUSE or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    sys.stderr.write(f"start guard: {verdict}: {why}\n")
    if verdict == CLEAR:
        conf["primary_conninfo"] = ""
        _replace(auto, format_auto_conf(conf))
    return 0 if verdict in (ALLOW, CLEAR) else 1


def _local(settings: dict[str, str], data: Path, conf: dict[str, str]) -> Local:
    state = Path(settings["STATE_DIR"])
    promise, following = _read(state / "promise.json"), _read(state / "following.json")
    in_data = conf.get("ha.promised", "").split()
    known = [_read(state / f"{name}.json") for name in ("committed", "newest")]
    return Local(
        node=settings["NODE"],
        standby=(data / "standby.signal").exists(),
        promised=max(int(promise.get("epoch", 0)), int(in_data[0]) if in_data else 0),
        following_epoch=int(following.get("epoch", 0)),
        synchronous=conf.get("synchronous_standby_names", ""),
        rules=tuple(Rule.from_dict(entry) for entry in known if entry),
    )


def _clear_stale_pid(path: Path) -> None:
    """After a power cut another program may have the postmaster's number; pg_ctlcluster takes it for the server."""
    try:
        pid = int(path.read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return
    try:
        alive = Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
    except FileNotFoundError:
        alive = False
    if not alive:
        path.unlink()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def _ask(settings: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    nodes = dict(read_cluster(settings["CLUSTER_FILE"])["postgres"])
    nodes.pop(settings["NODE"], None)
    client = Client(
        {name: entry["address"] for name, entry in nodes.items()},
        int(settings["PORT"]),
        Path(settings["TOKEN_FILE"]).read_text().strip(),
        ca=settings["TLS_CA"],
        cert=settings["TLS_CERT"],
        key=settings["TLS_KEY"],
    )
    answers: dict[str, Any] = {}
    failures: list[str] = []

    def ask(name: str) -> None:
        try:
            answers[name] = client.get(name, "status", CALL_LIMIT_S)
        except AgentError as error:
            failures.append(str(error))

    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        list(pool.map(ask, nodes))
    return answers, failures


def _replace(path: Path, content: str) -> None:
    stat = path.stat()
    staged = path.with_name(".postgresql.auto.conf.guard")
    staged.write_text(content)
    staged.chmod(0o600)
    os.chown(staged, stat.st_uid, stat.st_gid)
    staged.rename(path)
