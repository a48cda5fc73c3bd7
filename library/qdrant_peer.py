#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: qdrant_peer
short_description: What this host is to the Qdrant cluster
description:
  - Reads the host's Raft state and asks the other hosts of the group whether they are working members. Changes nothing.
  - A Raft state that cannot be read fails the task - what cannot be known must not be started.
options:
  storage: {description: The peer's storage directory., type: path, required: true}
  url: {description: This peer's own API., type: str, required: true}
  peers: {description: The APIs of all hosts of the group., type: list, elements: str, required: true}
  ca: {description: CA file of the platform., type: path, required: true}
  api_key: {description: A key that may read., type: str, required: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Learn what the host is to the cluster
  qdrant_peer:
    storage: /var/lib/qdrant/storage
    url: https://192.0.2.1:6333
    peers: [https://192.0.2.1:6333, https://192.0.2.2:6333]
    ca: /etc/devmentor/tls/ca.crt
    api_key: "{{ qdrant_read_only_api_key }}"
"""

RETURN = r"""
member: {description: Whether the host has joined a cluster before., type: bool, returned: success}
running: {description: Whether its own API answers., type: bool, returned: success}
working: {description: Those of O(peers) whose consensus works., type: list, elements: str, returned: success}
unknown: {description: Why the others gave no answer, by URL., type: dict, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.qdrant import NoAnswer, Peer, QdrantError, parse_cluster, read_raft_state


def main():
    module = AnsibleModule(
        argument_spec={
            "storage": {"type": "path", "required": True},
            "url": {"type": "str", "required": True},
            "peers": {"type": "list", "elements": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        state = read_raft_state(Path(module.params["storage"]))
    except QdrantError as error:
        module.fail_json(msg=str(error))
    member = state is not None and state.member
    own, running, working, unknown = module.params["url"], True, [], {}
    # A member needs nobody's help to start; its own answer is all that is asked for.
    for url in [own] if member else module.params["peers"]:
        try:
            peer = Peer(url, module.params["api_key"], module.params["ca"], timeout_s=3)
            cluster = parse_cluster(peer.call("GET", "/cluster"))
            if cluster.thread == "working" and cluster.leader:
                working.append(url)
            else:
                unknown[url] = f"consensus thread {cluster.thread}, leader {cluster.leader}"
        except QdrantError as error:
            unknown[url] = str(error)
            running = running and not (url == own and isinstance(error, NoAnswer))
    module.exit_json(changed=False, member=member, running=running, working=working, unknown=unknown)


if __name__ == "__main__":
    main()
