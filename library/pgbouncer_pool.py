#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pgbouncer_pool
short_description: Pause, resume or clear the poolers' connections to the PostgreSQL leader
description:
  - Acts on the entries that lead to the leader; those of the replicas are left alone.
  - A failover or switchover resumes paused poolers by itself once it has led them to the leader.
  - Runs on any host with a failover agent; the agents of the poolers carry it out.
options:
  action:
    description:
      - V(pause) lets transactions end and holds clients. Where one pooler cannot in time, none stays paused.
      - V(resume) lets them go on. V(reload) reads the configuration. V(kill) drops all clients and their connections.
    type: str
    choices: [pause, resume, reload, kill]
    required: true
  deadline_s:
    description: "Seconds that transactions may take to end before a pause is given up. Range: 0.1..60."
    type: float
    default: 2
  nodes: {description: Poolers; all by default., type: list, elements: str, default: []}
  env_file: {description: The settings of this host's agent., type: path, default: /etc/devmentor/pgagent/pgagent.env}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Hold the clients
  pgbouncer_pool: {action: pause, deadline_s: 5}
  run_once: true
"""

RETURN = r"""
paused: {description: Pooler to whether it is paused now., type: dict, returned: success}
silent: {description: Poolers that did not answer or refused., type: list, elements: str, returned: failure}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor_ha.agents import ENV_ARGUMENT, Agents, HaError
from ansible.module_utils.devmentor_ha.operations import pool


def main():
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["pause", "resume", "reload", "kill"], "required": True},
            "deadline_s": {"type": "float", "default": 2},
            "nodes": {"type": "list", "elements": "str", "default": []},
            **ENV_ARGUMENT,
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 0.1 <= params["deadline_s"] <= 60:
        module.fail_json(msg=f"deadline_s: {params['deadline_s']} is outside of 0.1..60")
    try:
        agents = Agents.of_host(params["env_file"])
        result = pool(agents, module.check_mode, params["action"], params["deadline_s"], params["nodes"])
    except HaError as error:
        module.fail_json(msg=str(error), **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
