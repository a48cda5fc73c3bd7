"""What is wrong with a cluster, and what a collection and its replicas lack."""

import pytest

from module_utils.devmentor.qdrant import (
    QdrantError,
    absence,
    cluster_problem,
    parse_cluster,
    plan_collection,
    replica_problem,
)


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
            "hnsw_config": {"m": 0, "payload_m": 16, "ef_construct": 256, "full_scan_threshold": 10000},
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
        "hnsw_config": {"m": 0, "payload_m": 16, "ef_construct": 256},
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
    have["config"]["hnsw_config"] |= {"ef_construct": 64, "payload_m": None}
    plan = plan_collection(wanted, have)
    graph = {"ef_construct": 256, "payload_m": 16}
    assert plan.patch == {"params": {"write_consistency_factor": 2}, "hnsw_config": graph}
    assert len(plan.why) == 3
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
