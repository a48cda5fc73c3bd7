"""What "works" means, tier by tier: each check asks a service for real work and keeps the evidence.

Runs on the hosts, on Python's standard library alone. A check is a function that returns its evidence, raises `Failed`
where the answer is wrong, and anything else where there is no answer to judge: that is `unknown`, and unknown is
never a pass. Nothing that is asked for stays behind: keys expire, documents are deleted, canary rows are swept.
"""

from __future__ import annotations

import collections.abc as c
import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import time
from typing import Any

PASS, FAIL, UNKNOWN = "pass", "fail", "unknown"
EMBEDDING_DIMENSIONS = 384
MAX_LAG_BYTES = 16 * 1024 * 1024
MAX_LAG_SECONDS = 10.0


class Failed(Exception):
    """The service answered, and the answer is wrong. The message is the evidence."""


class Unanswered(Exception):
    """There is no answer that could be judged. The message says why."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of verify's table."""

    component: str
    host: str
    check: str
    result: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a host is asked, and with what.

    `peers`: group -> host -> address. `secrets` never appear in evidence or in a command line; nothing but secrets
    belongs in there, because Ansible blanks every occurrence of their values in the result. `run` is the same on all
    hosts of one verify, so that a row written on the primary can be looked for on the replicas.
    """

    host: str
    address: str
    groups: tuple[str, ...]
    peers: c.Mapping[str, c.Mapping[str, str]]
    ports: c.Mapping[str, int]
    tls: c.Mapping[str, str]
    secrets: c.Mapping[str, str]
    run: str
    vip: str = ""
    cache_user: str = "qwen"
    engine_url: str = ""
    embedding_model: str = ""
    collection: str = "pbml"
    certificate_days: int = 14
    replicated_row: bool = True
    patience: float = 30.0


@dataclasses.dataclass
class Recorder:
    """Collects the rows of one component; `facts` are what the control node compares between hosts."""

    plan: Plan
    component: str
    rows: list[Row] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, name: str, function: c.Callable[[], str]) -> bool:
        """Run one check; whether it passed."""
        try:
            result, evidence = PASS, function()
        except Failed as error:
            result, evidence = FAIL, str(error)
        except ConnectionRefusedError:
            result, evidence = FAIL, "connection refused: nothing listens"
        except Unanswered as error:
            result, evidence = UNKNOWN, str(error)
        except Exception as error:
            result, evidence = UNKNOWN, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        for secret in self.plan.secrets.values():
            evidence = evidence.replace(secret, "***") if secret else evidence
        self.rows.append(Row(self.component, self.plan.host, name, result, " ".join(evidence.split())[:300]))
        return result == PASS


def poll(function: c.Callable[[], str], patience: float, pause: float = 1.0) -> str:
    """Ask again until it passes or patience (seconds) ends; then its last complaint stands."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return function()
        except (Failed, Unanswered, OSError, subprocess.SubprocessError):
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)


# --- asking ---


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: c.Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed(f"HTTP {self.status} with a body that is not JSON: {self.body[:80]!r}") from None


def tls_context(plan: Plan) -> ssl.SSLContext:
    """The platform CA checks the other side; the host's own key pair is our side of mutual TLS."""
    context = ssl.create_default_context(cafile=plan.tls["ca"])
    context.load_cert_chain(plan.tls["cert"], plan.tls["key"])
    return context


def ask(
    plan: Plan,
    method: str,
    url: str,
    body: Any = None,
    headers: c.Mapping[str, str] | None = None,
    timeout: float = 20.0,
    expect: tuple[int, ...] = (200,),
) -> Answer:
    """One HTTP request; a status that is not expected raises Failed with the start of the body."""
    scheme, _, rest = url.partition("://")
    netloc, _, path = rest.partition("/")
    host, _, port = netloc.rpartition(":")
    connection: http.client.HTTPConnection
    if scheme == "https":
        connection = http.client.HTTPSConnection(host, int(port), timeout=timeout, context=tls_context(plan))
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    with contextlib.closing(connection):
        payload = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, f"/{path}", payload, {**kind, **(headers or {})})
        response = connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    if answer.status not in expect:
        raise Failed(f"HTTP {answer.status}: {answer.body[:160].decode(errors='replace')}")
    return answer


def bearer(plan: Plan) -> dict[str, str]:
    return {"Authorization": f"Bearer {plan.secrets['api_key']}"}


def run_command(
    command: list[str], stdin: str = "", env: c.Mapping[str, str] | None = None, timeout: float = 30
) -> str:
    """Standard output of a command. Raises Unanswered with what it complained about."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip()
        raise Unanswered(f"{command[0]} exited {done.returncode}: {complaint[-200:]}")
    if "canceling wait for synchronous replication" in done.stderr:
        raise Failed("the row was not acknowledged by a quorum of replicas within the time limit")
    return done.stdout


# --- every host ---


def check_host(plan: Plan, record: Recorder) -> None:
    def failed_units() -> str:
        units = run_command(["systemctl", "--failed", "--plain", "--no-legend", "--full"]).split("\n")
        names = [line.split()[0] for line in units if line.strip()]
        if names:
            raise Failed(f"failed: {', '.join(names)}")
        return "no unit failed"

    def certificate() -> str:
        text = run_command(["openssl", "x509", "-noout", "-enddate", "-in", plan.tls["cert"]])
        days = (ssl.cert_time_to_seconds(text.strip().partition("=")[2]) - time.time()) / 86400
        if days < plan.certificate_days:
            raise Failed(f"{days:.0f} days left, {plan.certificate_days} are the limit; run site.yml --tags pki")
        return f"{days:.0f} days left"

    record.check("systemd units", failed_units)
    record.check("certificate", certificate)


# Port name -> (group that has it, a line of its metrics that shows that it reaches what it measures).
EXPORTERS: dict[str, tuple[str, str]] = {
    "node_exporter": ("all", r"^node_load1 "),
    "process_exporter": ("all", r"^namedprocess_"),
    "postgres_exporter": ("postgres", r"^pg_up 1$"),
    "pgbouncer_exporter": ("pgbouncer", r"^pgbouncer_up 1$"),
    "redis_exporter": ("cache", r"^redis_up 1$"),
    "blackbox_exporter": ("monitoring", r"^blackbox_exporter_"),
}


def check_exporters(plan: Plan, record: Recorder) -> None:
    def measured(port: int, pattern: str) -> str:
        text = ask(plan, "GET", f"https://{plan.address}:{port}/metrics").body.decode(errors="replace")
        if not re.search(pattern, text, re.MULTILINE):
            raise Failed(f"answers, but no line matches {pattern}: it does not reach what it measures")
        return f"{sum(1 for line in text.splitlines() if line and not line.startswith('#'))} samples"

    for name, (group, pattern) in EXPORTERS.items():
        if group == "all" or group in plan.groups:
            record.check(name, lambda port=plan.ports[name], want=pattern: measured(port, want))  # type: ignore[misc]


# --- PostgreSQL ---

_STATE_SQL = """
select json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'timeline', (select timeline_id from pg_control_checkpoint()),
  'synchronous', current_setting('synchronous_standby_names'),
  'archive_mode', current_setting('archive_mode'),
  'pending_restart', (select coalesce(json_agg(name), '[]') from pg_settings where pending_restart),
  'receiver', (select status from pg_stat_wal_receiver),
  'archived', (select archived_count from pg_stat_archiver),
  'archive_broken', (select coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)
                     from pg_stat_archiver),
  'last_failed_wal', (select last_failed_wal from pg_stat_archiver))
"""
_REPLICAS_SQL = """
select coalesce(json_agg(json_build_object(
  'address', host(client_addr), 'name', application_name, 'state', state, 'sync', sync_state,
  'lag_bytes', pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint,
  'lag_seconds', extract(epoch from coalesce(replay_lag, interval '0'))::float)), '[]')
from pg_stat_replication
"""
# The schema is ours alone and outside of the platform's database; what older runs wrote is swept here.
_WRITE_SQL = """
set client_min_messages = warning;
set statement_timeout = '10s';
create schema if not exists devmentor_verify;
create table if not exists devmentor_verify.canary
  (run text primary key, host text not null, written_at timestamptz not null default now());
delete from devmentor_verify.canary where written_at < now() - interval '1 hour';
insert into devmentor_verify.canary (run, host) values (:'run', :'host');
"""
_READ_SQL = "select host || ' ' || to_char(written_at, 'HH24:MI:SS') from devmentor_verify.canary where run = :'run'"


def psql(plan: Plan, sql: str, **variables: str) -> str:
    """Run SQL as the database's owner over the local socket."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]
    command += ["-p", str(plan.ports["postgres"])]
    for name, value in variables.items():
        command += ["-v", f"{name}={value}"]
    return run_command(command, stdin=sql).strip()


def judge_replica(replica: c.Mapping[str, Any] | None) -> str:
    """A replica as its primary sees it."""
    if replica is None:
        raise Failed("does not stream from the primary")
    evidence = "{state}, {sync}, lag {lag_bytes} B, {lag_seconds:.2f} s".format(**replica)
    if replica["state"] != "streaming" or replica["lag_bytes"] is None:
        raise Failed(evidence)
    if replica["lag_bytes"] > MAX_LAG_BYTES or replica["lag_seconds"] > MAX_LAG_SECONDS:
        raise Failed(evidence)
    return evidence


def judge_synchronous(setting: str, replicas: list[dict[str, Any]]) -> str:
    """Enough replicas count for the quorum that the primary waits for."""
    wanted = re.match(r"(?:ANY|FIRST)\s+(\d+)", setting, re.IGNORECASE)
    if not wanted:
        raise Failed(f"synchronous_standby_names is {setting!r}: commits wait for no replica")
    counted = [r for r in replicas if r["sync"] in ("quorum", "sync") and r["state"] == "streaming"]
    evidence = f"{setting}: {len(counted)} of {len(replicas)} replicas count"
    if len(counted) < int(wanted.group(1)):
        raise Failed(evidence)
    return evidence


def check_postgres(plan: Plan, record: Recorder) -> None:
    state: dict[str, Any] = {}
    replicas: list[dict[str, Any]] = []

    def role() -> str:
        state.update(json.loads(psql(plan, _STATE_SQL)))
        record.facts["postgres_role"] = "replica" if state["in_recovery"] else "primary"
        if state["in_recovery"] and state["receiver"] != "streaming":
            raise Failed(f"replica whose WAL receiver is {state['receiver'] or 'not running'}")
        return f"{record.facts['postgres_role']}, timeline {state['timeline']}"

    def settings() -> str:
        if state["pending_restart"]:
            raise Failed(f"wait for a restart: {', '.join(state['pending_restart'])}")
        return "no setting waits for a restart"

    def archive() -> str:
        if state["archive_mode"] == "off":
            raise Failed("archive_mode is off")
        if state["archive_broken"]:
            raise Failed(f"the last attempt failed: {state['last_failed_wal']}")
        return f"{state['archived']} segments archived, the last attempt succeeded"

    def synchronous() -> str:
        replicas[:] = json.loads(psql(plan, _REPLICAS_SQL))
        return judge_synchronous(state["synchronous"], replicas)

    def write() -> str:
        began = time.monotonic()
        psql(plan, _WRITE_SQL, run=plan.run, host=plan.host)
        return f"acknowledged in {(time.monotonic() - began) * 1000:.0f} ms"

    def read() -> str:
        found = psql(plan, _READ_SQL, run=plan.run)
        if not found:
            raise Failed("the row of this run has not arrived")
        return f"written on {found}"

    def backup() -> str:
        stanzas = json.loads(run_command(["runuser", "-u", "postgres", "--", "pgbackrest", "info", "--output=json"]))
        backups = [b for stanza in stanzas for b in stanza.get("backup", []) if not b.get("error")]
        if not backups:
            raise Failed("there is no backup")
        age = (time.time() - backups[-1]["timestamp"]["stop"]) / 3600
        return f"{len(backups)} backups, the last {backups[-1]['type']}, {age:.1f} h old"

    if not record.check("role", role) and not state:
        return
    record.check("settings", settings)
    if state["in_recovery"]:
        if plan.replicated_row:
            record.check("row from the primary", lambda: poll(read, plan.patience))
        return
    # First the row: the replicas are waiting for it.
    record.check("row written", write)
    record.check("archiving", archive)
    record.check("backup", backup)
    if len(plan.peers["postgres"]) > 1 and record.check("synchronous commit", lambda: poll(synchronous, 10)):
        seen = {replica["address"]: replica for replica in replicas}
        for name, address in plan.peers["postgres"].items():
            if name != plan.host:
                record.check(f"replica {name}", lambda a=address: judge_replica(seen.get(a)))  # type: ignore[misc]


def check_pgbouncer(plan: Plan, record: Recorder) -> None:
    def entry(name: str, primary: bool | None) -> str:
        env = {
            "PGHOST": plan.address,
            "PGPORT": str(plan.ports["pgbouncer"]),
            "PGUSER": "pbml",
            "PGPASSWORD": plan.secrets["pbml_database_password"],
            "PGDATABASE": name,
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": plan.tls["ca"],
            "PGCONNECT_TIMEOUT": "10",
        }
        sql = "select pg_is_in_recovery(), host(inet_server_addr())"
        recovery, _, server = run_command(["psql", "-XAtq"], stdin=sql, env=env).strip().partition("|")
        kind = "replica" if recovery == "t" else "primary"
        names = {address: host for host, address in plan.peers.get("postgres", {}).items()}
        evidence = f"select over TLS answered by {kind} {names.get(server, server)}"
        if primary is not None and primary != (kind == "primary"):
            raise Failed(evidence)
        return evidence

    record.check("devmentor", lambda: entry("devmentor", True))
    record.check("devmentor_ro", lambda: entry("devmentor_ro", False if len(plan.peers["postgres"]) > 1 else None))
    record.check("devmentor_session", lambda: entry("devmentor_session", True))


# --- Qdrant ---


def judge_collection(view: c.Mapping[str, Any], hosts: int) -> str:
    """A collection as one peer sees it: every replica Active, none moving."""
    shards = [(s["shard_id"], s["state"]) for s in view.get("local_shards", [])]
    shards += [(s["shard_id"], s["state"]) for s in view.get("remote_shards", [])]
    if not shards:
        raise Failed("the collection has no shards")
    bad = [f"shard {shard} {state}" for shard, state in shards if state != "Active"]
    if bad:
        raise Failed(", ".join(sorted(bad)))
    if view.get("shard_transfers"):
        raise Failed(f"{len(view['shard_transfers'])} transfers under way")
    per_shard = len(shards) / view["shard_count"]
    if per_shard < min(3, hosts):
        raise Failed(f"{len(shards)} replicas of {view['shard_count']} shards, {min(3, hosts)} of each are needed")
    return f"{view['shard_count']} shards x {per_shard:g} replicas Active, no transfer"


def judge_raft(views: c.Mapping[str, c.Mapping[str, Any]]) -> str:
    """All peers have applied the same log, and each one's consensus works."""
    for name, view in views.items():
        if view.get("status") != "enabled":
            raise Failed(f"{name} is not in cluster mode")
        thread = view["consensus_thread_status"]["consensus_thread_status"]
        if thread != "working":
            raise Failed(f"consensus thread of {name} is {thread}")
        if view["raft_info"]["pending_operations"]:
            raise Failed(f"{name} has {view['raft_info']['pending_operations']} pending operations")
        if len(view["peers"]) != len(views):
            raise Failed(f"{name} knows {len(view['peers'])} peers of {len(views)}")
    commits = {name: view["raft_info"]["commit"] for name, view in views.items()}
    if len(set(commits.values())) > 1:
        raise Failed("commits differ: " + ", ".join(f"{name} {commit}" for name, commit in commits.items()))
    return f"{len(views)} peers, commit {next(iter(commits.values()))}, nothing pending, consensus working"


def check_qdrant(plan: Plan, record: Recorder) -> None:
    key = {"api-key": plan.secrets["qdrant_api_key"]}

    def get(address: str, path: str) -> Any:
        return ask(plan, "GET", f"https://{address}:{plan.ports['qdrant_http']}{path}", headers=key).json()["result"]

    def replicas() -> str:
        view = get(plan.address, f"/collections/{plan.collection}/cluster")
        return judge_collection(view, len(plan.peers["qdrant"]))

    def consensus() -> str:
        return judge_raft({name: get(address, "/cluster") for name, address in plan.peers["qdrant"].items()})

    record.check("replicas", lambda: poll(replicas, 10))
    # Commits move while somebody writes: peers may differ for a moment, not for long.
    record.check("consensus", lambda: poll(consensus, 10))


# --- cache ---


def resp_command(*words: str) -> bytes:
    """A command in the protocol that Redis and Valkey speak."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def resp_reply(stream: Any) -> str | None:
    """A simple, integer or bulk reply; an error reply raises Failed."""
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise Unanswered("the connection closed")
    kind, text = line[:1], line[1:-2].decode(errors="replace")
    if kind == b"-":
        raise Failed(text)
    if kind == b"$":
        length = int(text)
        return None if length < 0 else stream.read(length + 2)[:-2].decode(errors="replace")
    return str(text)


def check_cache(plan: Plan, record: Recorder) -> None:
    def round_trip() -> str:
        key, began = f"qwen:verify:{plan.run}:{plan.host}", time.monotonic()
        with (
            socket.create_connection((plan.address, plan.ports["cache"]), timeout=10) as raw,
            tls_context(plan).wrap_socket(raw, server_hostname=plan.address) as connection,
            connection.makefile("rwb") as stream,
        ):
            for command, wanted in (
                (("AUTH", plan.cache_user, plan.secrets["cache_password"]), "OK"),
                (("SET", key, plan.run, "EX", "60"), "OK"),
                (("GET", key), plan.run),
                (("DEL", key), "1"),
            ):
                stream.write(resp_command(*command))
                stream.flush()
                reply = resp_reply(stream)
                if reply != wanted:
                    raise Failed(f"{command[0]} answered {reply!r}")
            version = connection.version()
        return f"SET, GET, DEL over {version} in {(time.monotonic() - began) * 1000:.0f} ms"

    record.check("round trip", round_trip)


# --- engines and services ---


def judge_completion(answer: Answer) -> str:
    """A chat completion with at least one generated token."""
    body = answer.json()
    tokens = (body.get("usage") or {}).get("completion_tokens") or 0
    text = body["choices"][0]["message"].get("content") or ""
    if not tokens and not text:
        raise Failed("the completion is empty")
    served = answer.headers.get("x-devmentor-served-by")
    if served not in (None, "engine"):
        raise Failed(f"served by {served}, not by the engine")
    return f"{tokens or 'some'} tokens{' by the engine' if served else ''}"


def completion(plan: Plan, base: str, headers: c.Mapping[str, str] | None = None) -> str:
    began = time.monotonic()
    model = ask(plan, "GET", f"{base}/v1/models", headers=headers).json()["data"][0]["id"]
    body = {
        "model": model,
        # Never the same twice: a cached answer would show nothing about the engine.
        "messages": [{"role": "user", "content": f"verify {plan.run} {plan.host} {time.monotonic_ns()}"}],
        "max_tokens": 4,
    }
    evidence = judge_completion(ask(plan, "POST", f"{base}/v1/chat/completions", body, headers, timeout=60))
    return f"{evidence} of {model} in {time.monotonic() - began:.2f} s"


def check_engine(plan: Plan, record: Recorder) -> None:
    record.check("token generated", lambda: completion(plan, plan.engine_url))


def check_embeddings(plan: Plan, record: Recorder) -> None:
    def embedding() -> str:
        url = f"http://127.0.0.1:{plan.ports['llamacpp_embed']}/v1/embeddings"
        body = {"input": f"verify {plan.run}", "model": plan.embedding_model}
        vector = ask(plan, "POST", url, body).json()["data"][0]["embedding"]
        if len(vector) != EMBEDDING_DIMENSIONS or not any(vector):
            raise Failed(f"a vector of {len(vector)} dimensions, {EMBEDDING_DIMENSIONS} are needed")
        return f"a vector of {len(vector)} dimensions"

    record.check("text embedded", embedding)


def check_qwen(plan: Plan, record: Recorder) -> None:
    base = f"https://{plan.address}:{plan.ports['qwen']}"

    def ready() -> str:
        ask(plan, "GET", f"{base}/ready")
        return "ready"

    record.check("ready", ready)
    record.check("token through it", lambda: completion(plan, base, bearer(plan)))


def check_pbml(plan: Plan, record: Recorder) -> None:
    base = f"https://{plan.address}:{plan.ports['pbml']}"
    document = f"verify-{plan.run}-{plan.host}"
    sentence = f"The harbour pilot of {plan.host} keeps the blue lantern {plan.run} in the third boathouse."

    def ready() -> str:
        ask(plan, "GET", f"{base}/ready")
        return "ready"

    def ingest() -> str:
        body = {"id": document, "title": "verify", "text": sentence}
        answer = ask(plan, "POST", f"{base}/v1/documents", body, bearer(plan), expect=(202,)).json()
        if answer["durability"] != "quorum":
            raise Failed(f"acknowledged with durability {answer['durability']}, not quorum")
        return f"version {answer['version']} acknowledged by a quorum"

    def live() -> str:
        status = ask(plan, "GET", f"{base}/v1/documents/{document}", headers=bearer(plan)).json()["status"]
        if status != "live":
            raise Failed(f"is {status}, not live")
        return "live"

    def fetch() -> str:
        query = {"query": f"Where does the pilot of {plan.host} keep the blue lantern {plan.run}?", "token_budget": 512}
        context = ask(plan, "POST", f"{base}/v1/context", query, bearer(plan)).json()
        found = [chunk for chunk in context["chunks"] if chunk.get("document_id") == document]
        if not found:
            raise Failed(f"the document is not among {len(context['chunks'])} chunks")
        if context.get("degraded"):
            raise Failed("found, but in a degraded answer")
        return f"found, score {float(found[0]['score']):.2f}"

    def delete() -> str:
        url = f"{base}/v1/documents/{document}"
        ask(plan, "DELETE", url, headers=bearer(plan), expect=(200, 202, 204))

        def gone() -> str:
            answer = ask(plan, "GET", url, headers=bearer(plan), expect=(200, 404, 410))
            if answer.status == 200 and answer.json().get("status") != "deleted":
                raise Failed(f"still there: {answer.json().get('status')}")
            return "deleted"

        return poll(gone, plan.patience)

    record.check("ready", ready)
    if record.check("document ingested", ingest):
        if record.check("document live", lambda: poll(live, plan.patience)):
            record.check("document found", fetch)
        record.check("document deleted", delete)


def check_gateway(plan: Plan, record: Recorder) -> None:
    def holder() -> str:
        links = json.loads(run_command(["ip", "-j", "addr"]))
        mine = [link["ifname"] for link in links for a in link.get("addr_info", []) if a.get("local") == plan.vip]
        record.facts["vip_holder"] = bool(mine)
        return f"{plan.vip} is on {mine[0]}" if mine else f"{plan.vip} is on the other gateway"

    port = plan.ports["gateway"]
    record.check("token through it", lambda: completion(plan, f"https://{plan.address}:{port}", bearer(plan)))
    if plan.vip:
        record.check("virtual address", holder)
        record.check("token through VIP", lambda: completion(plan, f"https://{plan.vip}:{port}", bearer(plan)))


# --- monitoring ---

SLOWEST_SCRAPE = 60.0  # seconds: the certificate probes' interval in roles/prometheus


def judge_targets(targets: list[dict[str, Any]]) -> str:
    if not targets:
        raise Failed("there are no targets")
    bad = [
        f"{t['labels'].get('job')} {t['labels'].get('instance')} {t['health']}" for t in targets if t["health"] != "up"
    ]
    if bad:
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
        raise Failed(f"{len(bad)} of {len(targets)} not up: {', '.join(bad[:4])}{more}")
    return f"{len(targets)} targets up"


def judge_rules(groups: list[dict[str, Any]]) -> str:
    rules = [rule for group in groups for rule in group["rules"]]
    if not rules:
        raise Failed("no rules are loaded")
    bad = [rule["name"] for rule in rules if rule["health"] == "err"]
    if bad:
        raise Failed(f"rules with errors: {', '.join(bad)}")
    return f"{len(rules)} rules in {len(groups)} groups"


def check_prometheus(plan: Plan, record: Recorder) -> None:
    base = f"https://{plan.address}:{plan.ports['prometheus']}/api/v1"

    def targets() -> str:
        return judge_targets(ask(plan, "GET", f"{base}/targets?state=active").json()["data"]["activeTargets"])

    def rules() -> str:
        return judge_rules(ask(plan, "GET", f"{base}/rules").json()["data"]["groups"])

    # A target that was added a moment ago is only up after its first scrape.
    record.check("targets", lambda: poll(targets, plan.patience + SLOWEST_SCRAPE, 3))
    record.check("rules", rules)


def check_alertmanager(plan: Plan, record: Recorder) -> None:
    def mesh() -> str:
        url = f"https://{plan.address}:{plan.ports['alertmanager']}/api/v2/status"
        cluster = ask(plan, "GET", url).json()["cluster"]
        wanted = len(plan.peers["monitoring"])
        evidence = f"{len(cluster.get('peers', []))} of {wanted} peers, {cluster['status']}"
        if wanted > 1 and (len(cluster.get("peers", [])) != wanted or cluster["status"] != "ready"):
            raise Failed(evidence)
        return evidence

    record.check("mesh", lambda: poll(mesh, 15))


# --- all of it ---

# Component -> (the group whose hosts are asked, the function).
COMPONENTS: dict[str, tuple[str, c.Callable[[Plan, Recorder], None]]] = {
    "host": ("all", check_host),
    "postgres": ("postgres", check_postgres),
    "pgbouncer": ("pgbouncer", check_pgbouncer),
    "cache": ("cache", check_cache),
    "qdrant": ("qdrant", check_qdrant),
    "engine": ("qwen", check_engine),
    "embeddings": ("pbml", check_embeddings),
    "pbml": ("pbml", check_pbml),
    "qwen": ("qwen", check_qwen),
    "gateway": ("gateway", check_gateway),
    "prometheus": ("monitoring", check_prometheus),
    "alertmanager": ("monitoring", check_alertmanager),
    "exporters": ("all", check_exporters),
}


def run_all(plan: Plan) -> tuple[list[Row], dict[str, Any]]:
    """Every component of this host, side by side; the rows in the order of the table above."""
    records = [
        (Recorder(plan, component), function)
        for component, (group, function) in COMPONENTS.items()
        if group == "all" or group in plan.groups
    ]
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(records)) as pool:
        futures = [pool.submit(function, plan, record) for record, function in records]
    facts: dict[str, Any] = {}
    rows: list[Row] = []
    for (record, _), future in zip(records, futures, strict=True):
        error = future.exception()
        if error is not None:
            record.check("plan", lambda e=error: _raise(e))  # type: ignore[misc]
        rows += record.rows
        facts |= record.facts
    return rows, facts


def _raise(error: BaseException) -> str:
    raise Unanswered(f"{type(error).__name__}: {error}")


# --- the table (control node) ---


def across_hosts(facts: c.Mapping[str, c.Mapping[str, Any]], asked_all: bool) -> list[Row]:
    """What no host can tell alone: exactly one primary, exactly one holder of the virtual address."""
    rows = []
    for fact, value, component, name in (
        ("postgres_role", "primary", "postgres", "one primary"),
        ("vip_holder", True, "gateway", "one holder of VIP"),
    ):
        told = {host: answer[fact] for host, answer in facts.items() if fact in answer}
        if not told or not asked_all:
            continue
        holders = [host for host, answer in told.items() if answer == value]
        result = PASS if len(holders) == 1 else FAIL
        rows.append(Row(component, "(all)", name, result, ", ".join(holders) or "none"))
    return rows


def table(rows: c.Sequence[Row], width: int = 100) -> str:
    """The rows, aligned; evidence is cut at `width` unless the check did not pass."""
    order = {component: index for index, component in enumerate(COMPONENTS)}
    ordered = sorted(rows, key=lambda row: (order.get(row.component, -1), row.host != "(all)", row.host))
    head = Row("COMPONENT", "HOST", "CHECK", "RESULT", "EVIDENCE")
    widths = [
        max(len(getattr(row, field)) for row in [head, *ordered]) for field in ("component", "host", "check", "result")
    ]
    lines = []
    for row in [head, *ordered]:
        cells = (row.component, row.host, row.check, row.result)
        evidence = row.evidence if row.result != PASS else row.evidence[:width]
        padded = "  ".join(text.ljust(size) for text, size in zip(cells, widths, strict=True))
        lines.append(f"{padded}  {evidence}".rstrip())
    return "\n".join(lines)
