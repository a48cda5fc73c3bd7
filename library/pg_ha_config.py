#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pg_ha_config
short_description: The PostgreSQL cluster's first rule, pauses, and who follows
description:
  - Runs on any host with a failover agent and asks all agents; see docs/postgres-ha.md.
  - C(action=bootstrap) has the node that runs as the primary commit rule 1.0; from then on a lost leader is replaced.
    A cluster that has a rule is left alone.
options:
  action:
    description:
      - V(show) changes nothing. V(pause) and V(resume) are for V(nodes), V(add) and V(remove) for O(member).
      - While one node is paused no lost leader is replaced by itself; that node neither restarts, rejoins nor leaves
        followers out.
    type: str
    choices: [show, bootstrap, pause, resume, add, remove]
    required: true
  member: {description: The node that joins or leaves the followers., type: str}
  nodes: {description: Nodes to pause or resume; all by default., type: list, elements: str, default: []}
  away:
    description: Nodes known to be down. Any other that does not answer a pause fails it.
    type: list
    elements: str
    default: []
  minutes: {description: "How long a pause lasts at most. Range: 1..1440.", type: int, default: 60}
  reason: {description: Shown with a pause., type: str, default: maintenance}
  timeout: {description: Seconds that C(bootstrap) waits for a primary and a replica., type: int, default: 60}
  env_file: {description: The settings of this host's agent., type: path, default: /etc/devmentor/pgagent/pgagent.env}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Have the first rule
  pg_ha_config: {action: bootstrap}
  run_once: true

- name: Work on the network without a failover
  pg_ha_config: {action: pause, minutes: 20, reason: switch is replaced}

- name: Take a replica out of the quorum
  pg_ha_config: {action: remove, member: pg4}
"""

RETURN = r"""
rule: {description: The rule that is committed now., type: dict, returned: "except for pause and resume"}
before: {description: The rule before., type: dict, returned: with add and remove}
leader: {description: The node that leads; empty where nobody does., type: str, returned: "except for pause and resume"}
nodes: {description: Nodes that answered., type: list, elements: str, returned: with show pause and resume}
silent: {description: Nodes that did not., type: list, elements: str, returned: with show pause and resume}
until: {description: End of the pause in seconds since 1970., type: float, returned: with pause and resume}
reasons: {description: Why no node began yet., type: list, elements: str, returned: with bootstrap in check mode}
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor_ha import cluster_config
from ansible.module_utils.devmentor_ha.agents import ENV_ARGUMENT, Agents, HaError


def act(module):
    params, check = module.params, module.check_mode
    action = params["action"]
    if check and action == "bootstrap" and not os.path.exists(params["env_file"]):
        return {"changed": True, "rule": None, "leader": "", "reasons": [f"{params['env_file']} is not there yet"]}
    agents = Agents.of_host(params["env_file"])
    if action == "bootstrap":
        return cluster_config.bootstrap(agents, check, params["timeout"])
    if action == "pause":
        until = round(time.time()) + params["minutes"] * 60
        return cluster_config.pause(agents, until, params["reason"], check, params["nodes"], params["away"])
    if action == "resume":
        return cluster_config.pause(agents, 0, "", check, params["nodes"], params["away"])
    if action in ("add", "remove"):
        return cluster_config.change_member(agents, action, params["member"], check)
    return cluster_config.show(agents)


def main():
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str",
                "choices": ["show", "bootstrap", "pause", "resume", "add", "remove"],
                "required": True,
            },
            "member": {"type": "str"},
            "nodes": {"type": "list", "elements": "str", "default": []},
            "away": {"type": "list", "elements": "str", "default": []},
            "minutes": {"type": "int", "default": 60},
            "reason": {"type": "str", "default": "maintenance"},
            "timeout": {"type": "int", "default": 60},
            **ENV_ARGUMENT,
        },
        required_if=[("action", "add", ["member"]), ("action", "remove", ["member"])],
        supports_check_mode=True,
    )
    if not 1 <= module.params["minutes"] <= 1440:
        module.fail_json(msg=f"minutes: {module.params['minutes']} is outside of 1..1440")
    try:
        module.exit_json(**act(module))
    except HaError as error:
        module.fail_json(msg=str(error), **error.facts)


if __name__ == "__main__":
    main()
