"""The client and its calls against a peer that answers by TLS."""

import datetime
import http.server
import ipaddress
import json
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from module_utils.devmentor.qdrant import (
    CONSENSUS_TIMEOUT_S,
    NoAnswer,
    NotFound,
    Peer,
    QdrantError,
    apply_plan,
    plan_collection,
    wait_for_cluster,
)
from tests.unit.conftest import load_module

CREATE = f"/collections/pbml?timeout={CONSENSUS_TIMEOUT_S}"


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
    for path in (CREATE, "/collections/pbml/index?wait=true"):
        handler.answers[("PUT", path)] = (200, True)
    apply_plan(peer, wanted, plan_collection(wanted, None), peers=3)
    assert [(path, body) for _, path, _, body in handler.asked] == [
        (CREATE, wanted.body()),
        (
            "/collections/pbml/index?wait=true",
            {"field_name": "tenant", "field_schema": {"type": "keyword", "is_tenant": True}},
        ),
        ("/collections/pbml/index?wait=true", {"field_name": "document_id", "field_schema": "keyword"}),
    ]


def test_a_change_that_the_consensus_lost_is_asked_for_again(served, wanted):
    """The follower waits for it in vain and says so before the client gives up on the follower."""
    peer, handler, module = *served, load_module("qdrant_collection")
    assert peer.timeout_s > CONSENSUS_TIMEOUT_S
    peer = module.Peer(peer.url, peer.api_key, peer.ca)
    lost = "Waiting for consensus operation commit failed. Timeout set at: 5 seconds"
    handler.answers[("PUT", CREATE)] = (500, lost)
    handler.answers[("PUT", "/collections/pbml/index?wait=true")] = (200, True)
    local = [{"shard_id": shard, "state": "Active"} for shard in range(wanted.shard_number)]
    remote = [{**shard, "peer_id": other} for shard in local for other in (2, 3)]
    placement = {"peer_id": 1, "local_shards": local, "remote_shards": remote}
    handler.answers[("GET", "/collections/pbml/cluster")] = (200, placement)
    threading.Timer(0.5, handler.answers.__setitem__, (("PUT", CREATE), (200, True))).start()
    result = {"peers": 3, "why": [], "replicas": {}}
    module.apply_all(peer, [(wanted, plan_collection(wanted, None))], result, 20, module.NOBODY)
    assert result["replicas"] == {"pbml": len(local) + len(remote)}
    assert [path for _, path, _, _ in handler.asked].count(CREATE) >= 2
    handler.answers[("PUT", CREATE)] = (500, lost)
    with pytest.raises(module.NotYet, match="consensus operation commit failed"):
        module.apply_all(peer, [(wanted, plan_collection(wanted, None))], result, 0, module.NOBODY)
