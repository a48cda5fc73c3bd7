#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pg_cluster_info
short_description: Who leads PostgreSQL, who follows, and what is not as it should be
description:
  - Asks all failover agents at once, from any host that has one, and gives a verdict with every reason for it.
  - What does not answer or cannot be read is a reason; it is never taken for good. A verdict that is not V(healthy)
    does not fail the module.
  - See docs/postgres-ha.md for the states.
options:
  away:
    description: Hosts that are known to be down (the group C(offline)). They are not missed, and heard if they answer.
    type: list
    elements: str
    default: []
  wait: {description: Seconds to ask again while the state is none of O(states)., type: int, default: 0}
  states:
    description: What O(wait) waits for.
    type: list
    elements: str
    choices: [healthy, degraded, failing_over, no_leader, unknown]
    default: [healthy]
  timeout: {description: "Seconds that an agent may take for its answer. Range: 0.1..30.", type: float, default: 2}
  env_file: {description: The settings of this host's agent., type: path, default: /etc/devmentor/pgagent/pgagent.env}
attributes:
  check_mode: {support: full, details: It changes nothing in any mode.}
  diff_mode: {support: none}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Learn who leads
  pg_cluster_info:
    away: "{{ groups['offline'] | default([]) }}"
  register: cluster
  run_once: true

- name: Wait until any one node may be lost again
  pg_cluster_info: {wait: 120}
  register: cluster
  failed_when: cluster.state != 'healthy'
"""

RETURN = r"""
state: {description: "healthy, degraded, failing_over, no_leader or unknown.", type: str, returned: success}
leader: {description: Who leads the rule by its own word; empty where nobody does., type: str, returned: success}
rule: {description: The highest committed rule that any agent knows; null without one., type: dict, returned: success}
reasons:
  description: Why it is not healthy; each with node (empty for the whole), what and remedy.
  type: list
  elements: dict
  returned: success
nodes:
  description: Of each PostgreSQL node that answered, role, promise, rule, committed, timeline, lsn, streaming and more.
  type: dict
  returned: success
poolers:
  description: Of each pooler that answered, state, rule, leader, target, paused.
  type: dict
  returned: success
lines: {description: All of it as an operator reads it., type: list, elements: str, returned: success}
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor_ha.agents import ENV_ARGUMENT, Agents, HaError
from ansible.module_utils.devmentor_ha.report import ORDER, examine, lines


def look(params):
    agents = Agents.of_host(params["env_file"])
    deadline = time.monotonic() + params["wait"]
    while True:
        verdict = examine(agents, params["away"], params["timeout"])
        if verdict.state in params["states"] or time.monotonic() >= deadline:
            found = verdict.as_dict()
            return {**found, "lines": lines(found)}
        time.sleep(min(1, params["timeout"]))


def main():
    module = AnsibleModule(
        argument_spec={
            "away": {"type": "list", "elements": "str", "default": []},
            "wait": {"type": "int", "default": 0},
            "states": {"type": "list", "elements": "str", "choices": list(ORDER), "default": ["healthy"]},
            "timeout": {"type": "float", "default": 2},
            **ENV_ARGUMENT,
        },
        supports_check_mode=True,
    )
    if not 0.1 <= module.params["timeout"] <= 30:
        module.fail_json(msg=f"timeout: {module.params['timeout']} is outside of 0.1..30")
    try:
        module.exit_json(changed=False, **look(module.params))
    except HaError as error:
        module.fail_json(msg=str(error), **error.facts)


if __name__ == "__main__":
    main()
