"""Who founds, who joins, what a collection lacks: the decisions, and the client against a peer that answers by TLS."""

import datetime
import http.server
import importlib.util
import ipaddress
import itertools
import json
import ssl
import threading
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from filter_plugins.qdrant import qdrant_start
from module_utils.devmentor.qdrant import (
    Collection,
    NoAnswer,
    NotFound,
    Peer,
    QdrantError,
    absence,
    apply_plan,
    cluster_problem,
    parse_cluster,
    plan_collection,
    read_raft_state,
    replica_problem,
    wait_for_cluster,
)
from tests.unit.conftest import load_module

ROLE = Path(__file__).parents[3] / "roles" / "qdrant"
URIS = {name: f"https://10.0.0.{index}:6335" for index, name in enumerate("abc", 1)}


def fact(member=False, running=False, working=()):
    return {"member": member, "running": running, "working": [f"https://10.0.0.{i}:6333" for i in working]}


def start(facts, **options):
    """The decision of every host that is in the play."""
    return {host: qdrant_start(facts, host, URIS, **options) for host in facts if facts[host] is not None}


def test_on_bare_hosts_the_first_founds_and_the_others_join_it():
    assert start({"a": fact(), "b": fact(), "c": fact()}) == {"a": "found", "b": URIS["a"], "c": URIS["a"]}


def test_members_start_as_they_are():
    assert start({name: fact(member=True) for name in "abc"}) == {"a": "", "b": "", "c": ""}


def test_a_first_host_that_lost_its_disk_joins_the_others():
    facts = {"a": fact(), "b": fact(member=True, running=True), "c": fact(member=True, running=True)}
    assert start(facts) == {"a": URIS["b"], "b": "", "c": ""}


def test_a_running_member_is_preferred():
    facts = {"a": fact(), "b": fact(member=True), "c": fact(member=True, running=True)}
    assert start(facts)["a"] == URIS["c"]


def test_while_all_members_are_down_nobody_founds():
    facts = {"a": fact(), "b": fact(member=True), "c": fact(member=True)}
    assert "found" not in start(facts).values()


def test_a_limited_run_joins_what_it_sees_at_work():
    assert start({"a": fact(working=[3]), "b": None, "c": None}) == {"a": URIS["c"]}


def test_a_limited_run_that_sees_nobody_is_refused():
    with pytest.raises(AnsibleFilterError, match="b, c"):
        start({"a": fact(), "b": None, "c": None})


def test_the_refusal_can_be_overruled_by_name():
    assert start({"a": None, "b": fact(), "c": fact()}, found_without=True) == {"b": "found", "c": URIS["b"]}


def test_at_most_one_founder_and_none_beside_a_member():
    known = [None, fact(), fact(member=True), fact(member=True, running=True)]
    for a, b, c in itertools.product(known, repeat=3):
        facts = {"a": a, "b": b, "c": c}
        founders = list(start(facts, found_without=True).values()).count("found")
        anyone = any(fact is not None for fact in facts.values())
        members = any(fact and fact["member"] for fact in facts.values())
        assert founders == (1 if anyone and not members else 0)


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("qdrant_start_script", ROLE / "files" / "qdrant-start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_launcher_never_founds_by_itself(launcher, tmp_path):
    with pytest.raises(ValueError, match="no Raft state"):
        launcher.arguments(launcher.member(tmp_path), "")
    assert launcher.arguments(False, "found") == []
    assert launcher.arguments(False, URIS["a"]) == ["--bootstrap", URIS["a"]]
    assert launcher.arguments(True, "") == []


@pytest.mark.parametrize(("term", "is_member"), [(0, False), (1, True), (7, True)])
def test_a_join_that_never_finished_is_no_membership(launcher, tmp_path, term, is_member):
    state = {"this_peer_id": 5, "state": {"hard_state": {"term": term, "vote": 0, "commit": 0}}}
    (tmp_path / "raft_state.json").write_text(json.dumps(state))
    assert launcher.member(tmp_path) is is_member
    assert read_raft_state(tmp_path).member is is_member


def test_an_unreadable_raft_state_is_unknown_not_absent(tmp_path):
    assert read_raft_state(tmp_path) is None
    (tmp_path / "raft_state.json").write_text("{")
    with pytest.raises(QdrantError, match="unknown"):
        read_raft_state(tmp_path)


def cluster(**changes):
    result = {
        "status": "enabled",
        "peer_id": 1,
        "peers": {str(i): {"uri": f"https://10.0.0.{i}:6335/"} for i in (1, 2, 3)},
        "raft_info": {"term": 1, "commit": 9, "pending_operations": 0, "leader": 1, "role": "Leader", "is_voter": True},
        "consensus_thread_status": {"consensus_thread_status": "working", "last_update": "2026-01-01T00:00:00Z"},
    }
    return parse_cluster(result | changes)


def test_a_whole_cluster_has_no_problem():
    assert cluster_problem(cluster(), 3, 3) == ""


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        (cluster(consensus_thread_status={"consensus_thread_status": "stopped", "err": "x"}), "stopped"),
        (cluster(raft_info={"leader": None, "pending_operations": 0}), "no leader"),
        (cluster(raft_info={"leader": 1, "pending_operations": 2}), "2 consensus operations"),
        (cluster(peers={"1": {"uri": "u"}}), "1 peers of at least 3"),
        (cluster(peers={str(i): {"uri": f"u{i}"} for i in range(4)}), "3 at u3"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_named(seen, problem):
    assert problem in cluster_problem(seen, 3, 3)


def test_a_peer_outside_distributed_mode_is_refused():
    with pytest.raises(QdrantError, match="distributed"):
        parse_cluster({"status": "disabled"})


@pytest.fixture
def wanted():
    [declared] = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())["qdrant_collections"]
    return Collection(**declared)


def current(**params):
    return {
        "config": {
            "params": {
                "vectors": {"size": 384, "distance": "Cosine"},
                "shard_number": 6,
                "replication_factor": 3,
                "write_consistency_factor": 2,
                "on_disk_payload": True,
            }
            | params,
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
        },
        "payload_schema": {
            "tenant": {"data_type": "keyword", "params": {"type": "keyword", "is_tenant": True}},
            "document_id": {"data_type": "keyword"},
        },
    }


def test_the_declared_collection_is_scaling_mds(wanted):
    assert wanted.body() == {
        "vectors": {"size": 384, "distance": "Cosine"},
        "shard_number": 6,
        "replication_factor": 3,
        "write_consistency_factor": 2,
        "hnsw_config": {"m": 16, "ef_construct": 100},
        "on_disk_payload": True,
    }


def test_a_collection_that_is_as_declared_needs_nothing(wanted):
    plan = plan_collection(wanted, current())
    assert (plan.create, plan.patch, plan.indexes, plan.drift, plan.why) == (False, {}, {}, (), ())


def test_a_missing_collection_is_made_with_its_indexes(wanted):
    plan = plan_collection(wanted, None)
    assert plan.create
    assert set(plan.indexes) == {"tenant", "document_id"}


def test_what_can_be_changed_is_patched(wanted):
    have = current(write_consistency_factor=1)
    have["config"]["hnsw_config"]["ef_construct"] = 64
    plan = plan_collection(wanted, have)
    assert plan.patch == {"params": {"write_consistency_factor": 2}, "hnsw_config": {"ef_construct": 100}}
    assert len(plan.why) == 2
    assert plan.drift == ()


@pytest.mark.parametrize(
    ("params", "drift"),
    [
        ({"shard_number": 3}, "shard_number is 3, declared 6"),
        ({"vectors": {"size": 768, "distance": "Cosine"}}, "vector size is 768, declared 384"),
        ({"vectors": {"named": {"size": 384, "distance": "Cosine"}}}, "vector size is None, declared 384"),
    ],
)
def test_what_cannot_be_changed_is_drift(wanted, params, drift):
    plan = plan_collection(wanted, current(**params))
    assert drift in plan.drift
    assert plan.patch == {}


def test_indexes(wanted):
    have = current()
    del have["payload_schema"]["tenant"]
    have["payload_schema"]["document_id"]["data_type"] = "integer"
    plan = plan_collection(wanted, have)
    assert set(plan.indexes) == {"tenant"}
    assert plan.drift == ("payload index document_id is integer, declared keyword",)


def shards(count, state="Active", peer=1):
    return [{"shard_id": i, "state": state, "peer_id": peer} for i in range(count)]


def placed(own, *others, transfers=()):
    remote = [shard for other in others for shard in other]
    return {"peer_id": 1, "local_shards": own, "remote_shards": remote, "shard_transfers": list(transfers)}


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        (placed(shards(6), shards(6, peer=2), shards(6, peer=3)), ""),
        (placed(shards(6), shards(6, peer=2)), "12 replicas of 18"),
        (placed(shards(6, "Dead"), shards(6, peer=2), shards(6, peer=3)), "6 of 18 replicas are Dead"),
        (placed(shards(6), shards(6, peer=2), shards(6, peer=3), transfers=[{}]), "1 shard transfers"),
    ],
)
def test_replicas(wanted, placement, problem):
    assert problem in replica_problem(wanted, placement)
    assert bool(replica_problem(wanted, placement)) is bool(problem)


GONE = absence(cluster().peers, ["10.0.0.3"])


def test_absent_hosts_are_known_by_their_address():
    assert (GONE.ids, GONE.strangers) == ({"3"}, 0)
    never_joined = absence(cluster().peers, ["10.0.0.4"])
    assert (never_joined.ids, never_joined.strangers) == (set(), 1)
    assert absence({"1": "nonsense", "2": "", "3": "https://["}, ["10.0.0.3"]).ids == set()


MOVE = {"shard_id": 1, "from": 1, "to": 3}


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        (placed(shards(6), shards(6, peer=2), shards(6, "Dead", peer=3), transfers=[MOVE]), ""),
        # Outside a limited run, and at work.
        (placed(shards(6), shards(6, peer=2), shards(6, peer=3)), ""),
        (placed(shards(6), shards(6, "Dead", peer=2), shards(6, "Dead", peer=3)), "6 of 12 replicas are Dead"),
        (placed(shards(6), shards(6, peer=2), shards(6, "Dead", peer=3), transfers=[MOVE | {"to": 2}]), "1 shard tra"),
        (placed(shards(6), shards(6, peer=2)), "12 replicas of 18"),
        (placed(shards(6), shards(5, peer=2), shards(6, "Dead", peer=3), shards(1, peer=4)), "shards 5 have fewer"),
    ],
)
def test_of_absent_hosts_no_replica_is_asked(wanted, placement, problem):
    assert problem in replica_problem(wanted, placement, GONE)
    assert bool(replica_problem(wanted, placement, GONE)) is bool(problem)


def test_a_host_that_was_removed_took_its_replicas_along(wanted):
    removed = absence(cluster(peers={str(i): {"uri": f"https://10.0.0.{i}:6335/"} for i in (1, 2)}).peers, ["10.0.0.3"])
    assert replica_problem(wanted, placed(shards(6), shards(6, peer=2)), removed) == ""
    assert "6 replicas of 12" in replica_problem(wanted, placed(shards(6)), removed)


@pytest.mark.parametrize("broken", [{}, {"peer_id": 1, "local_shards": [{}], "remote_shards": []}, {"peer_id": 1}])
def test_a_placement_that_cannot_be_read_is_no_good_one(wanted, broken):
    with pytest.raises(QdrantError, match="cannot be read"):
        replica_problem(wanted, broken, GONE)


class Answers(http.server.BaseHTTPRequestHandler):
    answers: dict
    asked: list

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.path, self.headers["api-key"], json.loads(body) if body else None))
        status, result = self.answers.get((self.command, self.path), (404, None))
        content = json.dumps({"result": result, "status": "ok"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_PATCH = answer

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """A peer's API behind TLS with a certificate of its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peer")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    ca, private = tmp_path / "ca.crt", tmp_path / "key"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, private)
    handler = type("Handler", (Answers,), {"answers": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Peer(f"https://127.0.0.1:{server.server_port}", "secret", str(ca)), handler
    server.shutdown()
    server.server_close()


def test_a_call_carries_the_key_and_tells_absent_from_refused(served):
    peer, handler = served
    handler.answers[("GET", "/cluster")] = (200, {"a": 1})
    handler.answers[("GET", "/refused")] = (403, None)
    assert peer.call("GET", "/cluster") == {"a": 1}
    assert handler.asked[0][2] == "secret"
    with pytest.raises(NotFound):
        peer.call("GET", "/collections/none")
    with pytest.raises(QdrantError, match="403"):
        peer.call("GET", "/refused")


def test_a_peer_that_cannot_yet_is_asked_again_and_a_refusal_is_not(served):
    """What a peer says of a collection that another one makes in the same moment."""
    handler, module = served[1], load_module("qdrant_collection")
    peer, patiently = module.Peer(served[0].url, "secret", served[0].ca), module.patiently
    handler.answers[("GET", "/collections/pbml")] = (500, None)
    with pytest.raises(module.NotYet, match="answered 500"):
        patiently(lambda: peer.call("GET", "/collections/pbml"), 0)
    timer = threading.Timer(0.5, handler.answers.__setitem__, (("GET", "/collections/pbml"), (200, {"a": 1})))
    timer.start()
    assert patiently(lambda: peer.call("GET", "/collections/pbml"), 20) == {"a": 1}
    handler.answers[("GET", "/refused")] = (403, None)
    asked = len(handler.asked)
    with pytest.raises(module.QdrantError, match="403"):
        patiently(lambda: peer.call("GET", "/refused"), 20)
    assert len(handler.asked) == asked + 1


def test_a_peer_of_another_ca_is_no_answer(served):
    peer, handler = served
    with pytest.raises(NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
        Peer(peer.url, "secret", "/etc/ssl/certs/ca-certificates.crt").call("GET", "/cluster")
    assert handler.asked == []


def test_a_missing_ca_file_is_no_answer(served):
    with pytest.raises(NoAnswer):
        Peer(served[0].url, "secret", "/nonexistent/ca.crt").call("GET", "/cluster")


def test_waiting_ends_with_what_was_wrong(served):
    peer, handler = served
    handler.answers[("GET", "/cluster")] = (200, {"status": "disabled"})
    with pytest.raises(QdrantError, match="distributed"):
        wait_for_cluster(peer, 3, 3, 0)


def test_too_few_peers_create_nothing(served, wanted):
    peer, handler = served
    with pytest.raises(QdrantError, match="3 replicas of each shard and the cluster has 2 peers"):
        apply_plan(peer, wanted, plan_collection(wanted, None), peers=2)
    assert handler.asked == []


def test_creating_asks_for_collection_and_indexes(served, wanted):
    peer, handler = served
    for path in ("/collections/pbml?timeout=60", "/collections/pbml/index?wait=true"):
        handler.answers[("PUT", path)] = (200, True)
    apply_plan(peer, wanted, plan_collection(wanted, None), peers=3)
    assert [(path, body) for _, path, _, body in handler.asked] == [
        ("/collections/pbml?timeout=60", wanted.body()),
        (
            "/collections/pbml/index?wait=true",
            {"field_name": "tenant", "field_schema": {"type": "keyword", "is_tenant": True}},
        ),
        ("/collections/pbml/index?wait=true", {"field_name": "document_id", "field_schema": "keyword"}),
    ]
