"""The cluster under test as its servers tell it, asked inside each host by the local socket: no agent has a say."""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lab.errors import LabError
from lab.host import Host
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.progress import Silent
from tests.chaos.postgres.agents import call, port
from tests.chaos.postgres.attempts import Row
from tools.inventory_vars import Inventory
from tools.runs import ROOT

CA = ROOT / ".cache" / "chaos" / "ca.pem"
DATABASE = "devmentor"
TABLE = "pbml.chaos_rows"
MAKE_TABLE = """
CREATE TABLE IF NOT EXISTS {table} (
  run text, client text, seq bigint, ident bigserial, at timestamptz DEFAULT clock_timestamp(),
  PRIMARY KEY (run, client, seq)
)
"""
# Values as JSON; the second line only where the agents have made their table.
VIEW = """
SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
  'waits_for', current_setting('synchronous_standby_names'),
  'lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0',
  'followers', (SELECT coalesce(json_object_agg(application_name, sync_state), '{}') FROM pg_stat_replication
                WHERE state = 'streaming'));
SELECT to_regclass('ha.rule') IS NOT NULL AS ruled \\gset
\\if :ruled
SELECT row_to_json(r) FROM (SELECT * FROM ha.rule ORDER BY epoch DESC, sub DESC LIMIT 1) r;
\\endif
"""

# What a failure is looked for in, of one host: the server's unit and its processes, both journals without sudo's lines
# and the common half of the agent's, the server's log.
TOLD = r"""
systemctl show --property=ActiveState,SubState,Result,Job 'postgresql@*' | paste -sd' '
ps --no-headers -o pid,etimes,stat,wchan:20,args --pid "$(cat /sys/fs/cgroup/devmentor.slice/devmentor-postgres.slice/\
postgresql@*/cgroup.procs | paste -sd, )" | grep -v 'idle$\|walwriter\|background writer\|launcher' | cut -c1-150
journalctl --no-pager -o short-precise -n 200 -u pgagent -u 'postgresql@*' | grep -v 'sudo\[' | tail -n 25 |
  sed 's/{"time":.*"message"/{"message"/'
tail -qn 12 /var/log/postgresql/*.log
"""


@dataclass(frozen=True)
class View:
    """What one server says. `followers`: application name -> sync_state, of those that stream from it."""

    node: str
    recovery: bool
    timeline: int
    waits_for: str
    lsn: int
    followers: dict[str, str]
    rule: dict[str, Any] | None = None


class Target(Protocol):
    """What a round needs of a cluster; this module's is the platform's, tests/bench/failover has the peer's."""

    lab: Lab
    nodes: list[str]

    def views(self) -> dict[str, View]: ...
    def settled(self) -> str: ...
    def clients(self, run: str) -> list[dict[str, Any]]: ...
    def socket(self) -> str: ...
    def server_name(self, address: str) -> str: ...
    def evidence(self, folder: Path) -> None: ...


@dataclass
class Cluster:
    """The platform's own: agents, PgBouncer."""

    inventory: Path
    nodes: list[str] = field(default_factory=list)
    poolers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lab = Lab(read_inventory(self.inventory), Silent())
        self.variables = Inventory(self.inventory)
        self.nodes = self.variables.hosts("postgres")
        self.poolers = self.variables.hosts("pgbouncer")
        self._addresses = {self.lab.host(node).address: node for node in self.nodes}

    def views(self) -> dict[str, View]:
        """Node -> what it says; those that do not answer are left out."""
        return views(self.lab, self.nodes)

    def settled(self) -> str:
        """Why the cluster is not whole yet; empty where one server leads and all others follow it."""
        seen = self.views()
        if why := whole(seen, self.nodes):
            return why
        leader = leader_of(seen)
        rule = seen[leader].rule
        if rule is None or (rule["leader"], sorted(rule["followers"])) != (leader, without(self.nodes, leader)):
            return f"{leader} leads, its rule is {rule}"
        return ""

    def bootstrap(self) -> None:
        """The first rule, where the cluster has none yet."""
        seen = self.views()
        leader = leader_of(seen)
        if leader and seen[leader].rule is None:
            call(self.lab.host(leader), "members", {"bootstrap": True})

    def clients(self, run: str) -> list[dict[str, Any]]:
        """Writers through both poolers, half of them beginning at each, and two readers of the replicas."""
        first = [self.lab.host(pooler).address for pooler in self.poolers]
        secrets = self.variables.secrets(self.nodes[0])
        CA.parent.mkdir(parents=True, exist_ok=True)
        CA.write_text(secrets["vault_ca_cert"])
        common = {
            "port": port("pgbouncer"), "user": "pbml", "password": str(secrets["vault_postgres_pbml_password"]),
            "sslmode": "verify-full", "sslrootcert": str(CA),
        }  # fmt: skip

        def through(database: str, turn: int) -> dict[str, Any]:
            hosts = first[turn % 2 :] + first[: turn % 2]
            return {**common, "host": ",".join(hosts), "dbname": database}

        writers = [{"kind": "writer", "name": f"w{n}", "connect": through(DATABASE, n)} for n in range(4)]
        readers = [
            {"kind": "reader", "name": f"r{n}", "reads": "w0", "connect": through(f"{DATABASE}_ro", n)}
            for n in range(2)
        ]
        return writers + readers

    def socket(self) -> str:
        return "/var/run/postgresql"

    def server_name(self, address: str) -> str:
        return self._addresses.get(address, address)

    def told(self) -> str:
        """What agents and servers say and did last, for a test that fails: its hosts are gone afterwards."""
        log = ["sh", "-c", TOLD]
        lines = []
        for node in self.nodes:
            host = self.lab.host(node)
            try:
                status = call(host, "status", seconds=5)
                seen = {key: status.get(key) for key in ("acting", "promise", "committed", "committing", "suspects")}
                postgres = {key: status["postgres"].get(key) for key in ("state", "age_s", "in_recovery", "streaming")}
                lines.append(f"{node}: {json.dumps({**seen, 'postgres': postgres})}")
            except LabError as error:
                lines.append(f"{node}: {error}")
            try:
                done = host.execute(log, check=False, timeout=10)
                lines += [f"  {line[:300]}" for line in done.stdout.splitlines()]
            except (LabError, subprocess.TimeoutExpired) as error:
                lines.append(f"  {error}")
        return "\n".join(lines)

    def evidence(self, folder: Path) -> None:
        """Every host's journal of PostgreSQL, agent and pooler since the last hour's start."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in [*self.nodes, *self.poolers]:
            save_journal(self.lab.host(name), folder)


def save_journal(host: Host, folder: Path, seconds: int = 600) -> None:
    """The host's journal and PostgreSQL's log of the last seconds, where the host runs."""
    command = (
        f"journalctl --no-pager -o short-precise --since -{seconds}s; "
        'for f in /var/log/postgresql/*.log; do echo "== $f"; '
        "grep -av 'read-only transaction\\|chaos_rows' \"$f\" | tail -n 2000; done"
    )
    try:
        done = host.execute(["timeout", "20", "sh", "-c", command], check=False, timeout=30)
        text = done.stdout
    except (LabError, subprocess.TimeoutExpired) as error:
        text = f"{error}\n"
    (folder / f"{host.name}.log").write_text(text)


def views(lab: Lab, nodes: list[str]) -> dict[str, View]:
    with ThreadPoolExecutor(len(nodes)) as pool:
        found = pool.map(lambda node: view(lab.host(node)), nodes)
    return {each.node: each for each in found if each is not None}


def view(host: Host) -> View | None:
    lines = sql(host, VIEW, "postgres")
    if not lines:
        return None
    rule = json.loads(lines[1]) if len(lines) > 1 else None
    return View(host.name, **json.loads(lines[0]), rule=rule)


def sql(host: Host, script: str, database: str = DATABASE, seconds: int = 4) -> list[str] | None:
    """The output of psql inside a host, None where that host or its server does not answer in time or refuses."""
    psql = ["env", "PGCONNECT_TIMEOUT=2", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database]
    try:
        command = ["timeout", str(seconds), *as_owner(host), *psql]
        done = host.execute(command, stdin=script, check=False, timeout=seconds + 1)
    except (LabError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def as_owner(host: Host) -> list[str]:
    """The start of a command that runs as the servers' owner, whom its socket lets in as the superuser.

    By number, not by name: pg_ctlcluster takes any process whose command line has the word for the server, where its
    process id is the one that a power cut left in postmaster.pid, and refuses to start it.
    """
    try:
        passwd = Path(f"/proc/{host.require_init()}/root/etc/passwd").read_text()
    except OSError as error:
        raise LabError(f"{host.name} has stopped meanwhile: {error}") from error
    fields = next((line.split(":") for line in passwd.splitlines() if line.startswith("postgres:")), None)
    if fields is None:
        raise LabError(f"{host.name} has no user postgres", "deploy it first")
    return ["setpriv", f"--reuid={fields[2]}", f"--regid={fields[3]}", "--clear-groups", "--"]


def without(nodes: list[str], leader: str) -> list[str]:
    return sorted(set(nodes) - {leader})


def leader_of(seen: dict[str, View]) -> str:
    """The one that leads; empty where none or more than one does."""
    leading = [each.node for each in seen.values() if not each.recovery]
    return leading[0] if len(leading) == 1 else ""


def whole(seen: dict[str, View], nodes: list[str]) -> str:
    """Why not every server follows the one that leads; empty where all do, on its timeline."""
    if silent := sorted(set(nodes) - set(seen)):
        return f"no answer from {', '.join(silent)}"
    leader = leader_of(seen)
    if not leader:
        return f"leading: {', '.join(sorted(each.node for each in seen.values() if not each.recovery)) or 'nobody'}"
    if missing := sorted(set(without(nodes, leader)) - set(seen[leader].followers)):
        return f"{', '.join(missing)} do not stream from {leader}"
    return ""


def make_table(lab: Lab, leader: str, table: str, database: str) -> None:
    """The table that clients append to, owned by the role that they use. Raises LabError where it cannot be made."""
    script = MAKE_TABLE.format(table=table) + f"; ALTER TABLE {table} OWNER TO pbml;"
    if sql(lab.host(leader), script, database, seconds=20) is None:
        raise LabError(f"{leader}: the table {table} cannot be made", f"lab exec {leader} -- journalctl -u 'postgres*'")


def rows(lab: Lab, node: str, run: str, table: str, database: str) -> list[Row] | None:
    """The rows of a run as one server holds them, read from the table itself and not from its index."""
    script = (
        "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off;\n"
        f"SELECT json_build_array(client, seq, ident) FROM {table} WHERE run = '{run}' ORDER BY ident;"
    )
    lines = sql(lab.host(node), script, database, seconds=20)
    return None if lines is None else [Row(*json.loads(line)) for line in lines]


def wait_until(condition: Any, seconds: float, every: float = 0.3) -> tuple[float, str]:
    """(seconds it took, why it is not so yet): waits until `condition` returns nothing to complain of."""
    began = time.monotonic()
    while True:
        why = condition()
        took = time.monotonic() - began
        if not why or took > seconds:
            return took, why
        time.sleep(every)
