"""Real Qdrant peers on loopback addresses of their own, as the molecule inventory pins the program."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from module_utils.devmentor.artifacts import select_artifacts
from module_utils.devmentor.artifacts_cache import Fetcher

REPOSITORY = Path(__file__).parents[3]


def binary() -> str:
    """Fetched into .cache where it is not there. Raises ArtifactError."""
    declared = yaml.safe_load((REPOSITORY / "molecule/inventory/group_vars/all/artifacts.yml").read_text())
    artifact = select_artifacts(declared["devmentor_artifacts"], ["qdrant"])[0]
    return str(Fetcher(REPOSITORY / ".cache").fetch(artifact).path)


def call(url: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The `result` of one request over plain HTTP."""
    request = urllib.request.Request(
        url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["result"]


@dataclass
class Peer:
    """One peer's process and REST URL."""

    url: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def peer(folder: Path, host: str, ports: tuple[int, int, int], *arguments: str, **settings: str) -> Iterator[Peer]:
    """A peer whose REST, gRPC and peer-to-peer ports are these."""
    folder.mkdir()
    http, grpc, p2p = map(str, ports)
    environment = {
        "QDRANT__STORAGE__STORAGE_PATH": str(folder / "storage"),
        "QDRANT__STORAGE__SNAPSHOTS_PATH": str(folder / "snapshots"),
        "QDRANT__STORAGE__WAL__WAL_CAPACITY_MB": "1",
        "QDRANT__SERVICE__HOST": host,
        "QDRANT__SERVICE__HTTP_PORT": http,
        "QDRANT__SERVICE__GRPC_PORT": grpc,
        "QDRANT__SERVICE__ENABLE_STATIC_CONTENT": "false",
        "QDRANT__CLUSTER__ENABLED": "true",
        "QDRANT__CLUSTER__P2P__PORT": p2p,
        "QDRANT__CLUSTER__CONSENSUS__TICK_PERIOD_MS": "50",
        "QDRANT__TELEMETRY_DISABLED": "true",
        "QDRANT__LOG_LEVEL": "WARN",
        **settings,
    }
    command = [binary(), "--uri", f"http://{host}:{p2p}", *arguments]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    scheme = "https" if settings.get("QDRANT__SERVICE__ENABLE_TLS") else "http"
    try:
        yield Peer(f"{scheme}://{host}:{http}", process)
    finally:
        process.kill()
        process.wait(10)


def until_up(url: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            call(url, "GET", "/cluster")
            return
        except (OSError, urllib.error.URLError):
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.1)
