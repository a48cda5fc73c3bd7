"""Point ids and the comparison of a collection with its declaration."""

from types import SimpleNamespace

import pytest

from devmentor.pbml.index import Index, point_id
from devmentor.pbml.settings import Settings
from devmentor.pbml.store.chunks import pack, unpack


def test_point_ids_are_stable_and_apart():
    assert point_id("t", "d", 1, 0) == point_id("t", "d", 1, 0)
    parts = [
        ("t", "d", 1, 0),
        ("t", "d", 1, 1),
        ("t", "d", 2, 0),
        ("t", "e", 1, 0),
        ("u", "d", 1, 0),
        ("t", "d", 11, 0),
    ]
    assert len({point_id(*part) for part in parts}) == len(parts)


def collection(**changes):
    params = {"shard_number": 6, "replication_factor": 3, "write_consistency_factor": 2, **changes}
    vectors = SimpleNamespace(size=changes.get("size", 384), distance=SimpleNamespace(value="Cosine"))
    return SimpleNamespace(vectors=vectors, **params), SimpleNamespace(m=changes.get("m", 16), ef_construct=100)


@pytest.mark.parametrize(
    ("changes", "peers", "expected"),
    [
        ({}, 3, []),
        ({}, 5, []),
        ({"replication_factor": 1, "write_consistency_factor": 1}, 1, []),
        ({"replication_factor": 2, "write_consistency_factor": 2}, 2, []),
        ({"replication_factor": 1}, 3, ["replication factor is 1, declared is 3"]),
        ({"m": 8, "shard_number": 1}, 3, ["shard number is 1, declared is 6", "hnsw m is 8, declared is 16"]),
        ({"size": 768}, 3, ["vector size is 768, declared is 384"]),
    ],
)
def test_drift_is_named(changes, peers, expected):
    index = Index(Settings(tenants_file=None))
    assert index._differences(*collection(**changes), peers) == expected


def test_vectors_survive_packing():
    values = [0.25, -1.0, 3.5]
    assert unpack(pack(values)) == values
    assert len(pack(values)) == 12
