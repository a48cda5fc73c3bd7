#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: qdrant_collection
short_description: Declarative Qdrant collections on a whole cluster
description:
  - Waits until this peer is a working member that sees every peer, then has each collection as declared, then waits
    until all its replicas on present peers are active as seen from this peer, and enough of each shard for a write.
  - What can be changed on a live collection is changed. What cannot (vectors, number of shards, type of an index) is
    drift, and fails the task before anything is done - the data would have to be written anew.
  - In check mode a peer that does not answer is one that is not installed yet.
options:
  url: {description: The peer's API., type: str, required: true}
  ca: {description: CA file of the platform., type: path, required: true}
  api_key: {description: The read-write API key., type: str, required: true}
  least_peers: {description: Peers that must have joined., type: int, required: true}
  most_peers: {description: Peers of the inventory., type: int, required: true}
  absent:
    description: Hosts, as in the peers' URIs, that take no part now. Their replicas need not be active.
    type: list
    elements: str
    default: []
  timeout: {description: Seconds to wait for the cluster and for replicas., type: int, default: 60}
  collections:
    description: The collections to have; others are left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name., type: str, required: true}
      size: {description: Dimensions of a vector., type: int, required: true}
      distance: {description: Metric., type: str, choices: [Cosine, Dot, Euclid, Manhattan], default: Cosine}
      shard_number: {description: Shards., type: int, default: 6}
      replication_factor: {description: Replicas of each shard., type: int, default: 3}
      write_consistency_factor: {description: Replicas that must confirm a write., type: int, default: 2}
      hnsw_m: {description: Edges per node of the graph of all points; 0 for no such graph., type: int, default: 16}
      hnsw_payload_m:
        description: Edges per node of the graphs of a payload index's values. Without it they are left as they are.
        type: int
      hnsw_ef_construct: {description: Neighbours considered while building the index., type: int, default: 100}
      on_disk_payload: {description: Keep payloads on disk instead of in memory., type: bool, default: true}
      payload_indexes:
        description: Payload field to schema, a type such as C(keyword) or a mapping as in Qdrant's API.
        type: dict
        default: {}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Have the collections
  qdrant_collection:
    url: https://192.0.2.1:6333
    ca: /etc/devmentor/tls/ca.crt
    api_key: "{{ qdrant_api_key }}"
    least_peers: 3
    most_peers: 3
    collections:
      - name: pbml
        size: 384
        payload_indexes: {tenant: {type: keyword, is_tenant: true}, document_id: keyword}
  throttle: 1
"""

RETURN = r"""
peers: {description: Peers of the cluster., type: int, returned: success}
replicas: {description: Active replicas of each collection., type: dict, returned: success}
why: {description: Every difference that was acted on., type: list, elements: str, returned: success}
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.qdrant import (
    NOBODY,
    Collection,
    NoAnswer,
    NotFound,
    NotYet,
    Peer,
    Plan,
    QdrantError,
    absence,
    apply_plan,
    plan_collection,
    wait_for_cluster,
    wait_for_replicas,
)

COLLECTION = {
    "name": {"type": "str", "required": True},
    "size": {"type": "int", "required": True},
    "distance": {"type": "str", "choices": ["Cosine", "Dot", "Euclid", "Manhattan"], "default": "Cosine"},
    "shard_number": {"type": "int", "default": 6},
    "replication_factor": {"type": "int", "default": 3},
    "write_consistency_factor": {"type": "int", "default": 2},
    "hnsw_m": {"type": "int", "default": 16},
    "hnsw_ef_construct": {"type": "int", "default": 100},
    "hnsw_payload_m": {"type": "int"},
    "on_disk_payload": {"type": "bool", "default": True},
    "payload_indexes": {"type": "dict", "default": {}},
}


def plan_all(peer, collections):
    plans = []
    for wanted in collections:
        try:
            current = peer.call("GET", f"/collections/{wanted.name}")
        except NotFound:
            current = None
        plans.append((wanted, plan_collection(wanted, current)))
    drift = [f"{wanted.name}: {what}" for wanted, plan in plans for what in plan.drift]
    if drift:
        raise QdrantError(
            f"collections differ in what cannot be changed: {'; '.join(drift)}. Nothing was changed. Remedy: declare "
            "them as they are, or make a collection of another name and have PBML rebuild its index into it."
        )
    return plans


def patiently(attempt, timeout):
    """What `attempt` returns, once the peer can; its last NotYet or NotFound after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return attempt()
        except (NotYet, NotFound):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.3)


def apply_all(peer, plans, result, timeout, absent):
    """Makes what the plans say. Peers are asked side by side, and one may not know yet what another has just made."""
    for wanted, plan in plans:
        result["why"] += plan.why
        patiently(lambda wanted=wanted, plan=plan: apply_plan(peer, wanted, plan, result["peers"]), timeout)
        replicas = patiently(lambda wanted=wanted: wait_for_replicas(peer, wanted, timeout, absent), timeout)
        result["replicas"][wanted.name] = replicas


def run(module, peer, collections):
    given = module.params
    result = {"changed": False, "peers": 0, "replicas": {}, "why": []}
    timeout, absent = 1 if module.check_mode else given["timeout"], NOBODY
    try:
        cluster = wait_for_cluster(peer, given["least_peers"], given["most_peers"], timeout)
        plans = patiently(lambda: plan_all(peer, collections), timeout)
        result["peers"], absent = len(cluster.peers), absence(cluster.peers, given["absent"])
    except QdrantError:
        if not module.check_mode or peer_answers(peer):
            raise
        plans = [(wanted, Plan(create=True, why=(f"{wanted.name} does not exist",))) for wanted in collections]
    if module.check_mode:
        result["why"] = [reason for _, plan in plans for reason in plan.why]
    else:
        apply_all(peer, plans, result, timeout, absent)
    result["changed"] = bool(result["why"])
    if module._diff and result["why"]:
        result["diff"] = {"prepared": "\n".join(result["why"]) + "\n"}
    return result


def peer_answers(peer):
    try:
        peer.call("GET", "/cluster")
    except NoAnswer:
        return False
    return True


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "least_peers": {"type": "int", "required": True},
            "most_peers": {"type": "int", "required": True},
            "absent": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
            "collections": {"type": "list", "elements": "dict", "default": [], "options": COLLECTION},
        },
        supports_check_mode=True,
    )
    given = module.params
    peer = Peer(given["url"], given["api_key"], given["ca"])
    try:
        result = run(module, peer, [Collection(**item) for item in given["collections"]])
    except QdrantError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
