"""Settings of the agent, PGAGENT_* variables."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import Field

from devmentor.common.settings import CommaList, ServiceSettings, service_config
from devmentor_ha.textfiles import conninfo


@dataclass(frozen=True, slots=True)
class Node:
    """A host with an agent. `priority`: higher is preferred among equally advanced candidates."""

    name: str
    address: str
    priority: int = 0


class Settings(ServiceSettings):
    """Where PostgreSQL and PgBouncer are on this host, who the others are, and how patient the agent is."""

    model_config = service_config("PGAGENT_")

    node: str
    duties: CommaList = Field(default_factory=lambda: ["postgres"])
    observe_only: bool = False
    token_file: Path
    cluster_file: Path
    state_dir: Path = Path("/var/lib/devmentor/pgagent")

    pg_port: int = 5432
    pg_unit: str = "postgresql@17-main.service"
    pg_bin_dir: Path = Path("/usr/lib/postgresql/17/bin")
    pg_data_dir: Path = Path("/var/lib/postgresql/17/main")
    pg_config_file: Path = Path("/etc/postgresql/17/main/postgresql.conf")
    pg_socket_dir: Path = Path("/var/run/postgresql")
    passfile: Path = Path("/etc/devmentor/postgres/replication.pgpass")
    restore_command: str = ""

    targets_file: Path = Path("/etc/pgbouncer/targets.ini")
    database: str = "devmentor"
    pooler_port: int = 6432
    pooler_socket_dir: Path = Path("/var/run/postgresql")

    probe_interval_s: float = Field(default=0.5, gt=0.05)
    probe_failures: int = Field(default=3, ge=1)
    probe_excuses: int = Field(default=6, ge=0, le=20)
    shrink_after_s: float = Field(default=10.0, gt=0)
    grow_after_s: float = Field(default=2.0, ge=0)
    reaffirm_after_s: float = Field(default=3.0, gt=0)
    startup_grace_s: float = Field(default=15.0, ge=0)

    @cached_property
    def token(self) -> str:
        """The secret that all agents and the modules share."""
        return self.token_file.read_text().strip()

    @cached_property
    def cluster(self) -> dict[str, dict[str, Node]]:
        """Duty -> name -> node, from cluster.json."""
        content = json.loads(self.cluster_file.read_text())
        return {
            duty: {
                name: Node(name, entry["address"], int(entry.get("priority", 0)))
                for name, entry in content.get(duty, {}).items()
            }
            for duty in ("postgres", "pgbouncer")
        }

    @property
    def nodes(self) -> dict[str, Node]:
        """The PostgreSQL nodes."""
        return self.cluster["postgres"]

    def leader_conninfo(self, address: str, **more: object) -> str:
        """How this node reaches the leader: as a replica, for pg_rewind and for probes."""
        return conninfo(
            {
                "host": address,
                "port": self.pg_port,
                "user": "replicator",
                "dbname": "postgres",
                "application_name": self.node,
                "passfile": self.passfile,
                "sslmode": "verify-full",
                "sslrootcert": self.tls_ca,
                "sslcert": self.tls_cert,
                "sslkey": self.tls_key,
                "connect_timeout": 3,
                "keepalives_idle": 1,
                "keepalives_interval": 1,
                "keepalives_count": 3,
                "tcp_user_timeout": 3000,
                **more,
            }
        )
