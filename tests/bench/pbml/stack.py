"""What is measured: the platform's parts as processes of their own on loopback, with the settings of their roles."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from module_utils.devmentor.artifacts import select_artifacts
from module_utils.devmentor.artifacts_cache import Fetcher
from tests.bench.pbml.postgres import Cluster, cluster
from tests.bench.qwen.systems import Running, free_port, process
from tools.runs import ROOT

CACHE = Path(os.environ.get("DEVMENTOR_CACHE") or ROOT / ".cache")
MODEL = CACHE / "models" / "all-minilm-l6-v2.gguf"
ARTIFACTS = ROOT / "inventories" / "lab" / "group_vars" / "all" / "artifacts.yml"
TENANTS = ("bench", "talks")
_CODE = {"PYTHONPATH": str(ROOT / "services" / "src")}


def key_of(tenant: str) -> str:
    """The tenant's key; of no use anywhere else."""
    return f"key-of-{tenant}"


@dataclass(frozen=True, slots=True)
class Stack:
    """Everything but PBML itself, running, and PBML's environment."""

    directory: Path
    postgres: Cluster
    qdrant: Running
    engine: Running
    environment: Mapping[str, str]
    qdrant_version: str

    def with_engine(self, engine: Running) -> Stack:
        """The same with another embeddings engine; PBML's processes take it up when they are started."""
        return replace(self, engine=engine, environment={**self.environment, "PBML_EMBEDDING_URLS": engine.url})

    @contextmanager
    def api(self) -> Iterator[Running]:
        """`pbml.service`'s process."""
        port = int(self.environment["PBML_PORT"])
        command = [sys.executable, "-m", "devmentor.pbml", "serve"]
        with process("pbml-api", command, self.environment, f"http://127.0.0.1:{port}", "/health") as running:
            yield running

    @contextmanager
    def worker(self) -> Iterator[Running]:
        """`pbml-worker.service`'s process; as nice as the unit's weight makes it."""
        port = int(self.environment["PBML_WORKER_PORT"])
        command = ["nice", "-n", "6", sys.executable, "-m", "devmentor.pbml", "worker"]
        with process("pbml-worker", command, self.environment, f"http://127.0.0.1:{port}", "/health") as running:
            yield running

    def command(self, *arguments: str) -> dict[str, Any]:
        """An operator's command of `devmentor-pbml`; its result. Raises SystemExit with what it said."""
        command = [sys.executable, "-m", "devmentor.pbml", *arguments]
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-2000:]}")
        return dict(json.loads(done.stdout))


def qdrant_binary() -> tuple[Path, str]:
    """The artefact that the lab's hosts run, and its version. Raises ArtifactError."""
    declared = yaml.safe_load(ARTIFACTS.read_text())["devmentor_artifacts"]
    [artifact] = select_artifacts(declared, ["qdrant"])
    return Fetcher(CACHE).fetch(artifact).path, artifact.version


@contextmanager
def qdrant(directory: Path) -> Iterator[tuple[Running, str]]:
    """One peer of a cluster of one: the three of a platform would share this machine's cores."""
    binary, version = qdrant_binary()
    http, grpc, p2p = free_port(), free_port(), free_port()
    config = {
        "log_level": "WARN",
        "telemetry_disabled": True,
        "storage": {
            "storage_path": str(directory / "storage"),
            "snapshots_path": str(directory / "snapshots"),
            "temp_path": str(directory / "tmp"),
            "on_disk_payload": True,
        },
        "service": {
            "host": "127.0.0.1",
            "http_port": http,
            "grpc_port": grpc,
            "max_request_size_mb": 32,
            "enable_static_content": False,
        },
        "cluster": {"enabled": True, "p2p": {"port": p2p}},
    }
    directory.mkdir(parents=True)
    file = directory / "qdrant.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(binary), "--config-path", str(file), "--uri", f"http://127.0.0.1:{p2p}"]
    with process("qdrant", command, {}, f"http://127.0.0.1:{http}", "/readyz") as running:
        yield running, version


@contextmanager
def engine(model: Path) -> Iterator[Running]:
    """The platform's embeddings engine with the role's settings."""
    port = free_port()
    settings = {"MODEL": str(model), "ALIAS": "embeddings", "MODE": "embed", "PORT": str(port), "CONTEXT": "512"}
    environment = {**_CODE, **{f"LLAMACPP_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "devmentor.llamacpp"]
    with process("embeddings", command, environment, f"http://127.0.0.1:{port}", "/health") as running:
        yield running


@contextmanager
def pretended() -> Iterator[Running]:
    """In the engine's place, one that computes nothing (pretended_engine.py)."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.pbml.pretended_engine", str(port)]
    with process("pretended", command, {"PYTHONPATH": str(ROOT)}, f"http://127.0.0.1:{port}", "/health") as running:
        yield running


@contextmanager
def everything(directory: Path, model: Path | None, standbys: int, postgres_gib: float) -> Iterator[Stack]:
    """All of it, with PBML's schema and collection made, until the block ends."""
    tenants = directory / "tenants.json"
    digests = {tenant: hashlib.sha256(key_of(tenant).encode()).hexdigest() for tenant in TENANTS}
    tenants.write_text(json.dumps([{"tenant": tenant, "key_sha256": digest} for tenant, digest in digests.items()]))
    directory.chmod(0o711)  # PostgreSQL's owner goes through it
    database = directory / "postgres"
    database.mkdir()
    with ExitStack() as stack:
        running = stack.enter_context(cluster(database, standbys, postgres_gib))
        index, version = stack.enter_context(qdrant(directory / "qdrant"))
        embeddings = stack.enter_context(engine(model) if model is not None else pretended())
        environment = {
            **_CODE,
            "PBML_PORT": str(free_port()),
            "PBML_WORKER_PORT": str(free_port()),
            "PBML_REPLICA": "bench",
            "PBML_LOG_LEVEL": "warning",
            "PBML_TENANTS_FILE": str(tenants),
            "PBML_DATABASE": running.conninfo,
            "PBML_DATABASE_SESSION_NAME": "devmentor",
            "PBML_QDRANT_URLS": index.url,
            "PBML_EMBEDDING_URLS": embeddings.url,
            "PBML_EMBEDDING_MODEL": "embeddings",
            "PBML_DRAIN_DELAY_S": "0",
        }
        made = Stack(directory, running, index, embeddings, environment, version)
        made.command("prepare")
        yield made
