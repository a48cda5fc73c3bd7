#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pg_restart
short_description: Restart the PostgreSQL server of a follower, and wait until it streams again
description:
  - The node's agent does it and does not interfere meanwhile. A node that leads is refused; move the lead with
    M(pg_switchover) first. So is one without which commits would wait.
options:
  node: {description: The node; by default the one that the module runs on., type: str}
  newer:
    description:
      - Files of this host. Where they are given, the server is restarted only if one of them was put in place after its
        start, so that a run which was interrupted in between is finished by the next one.
    type: list
    elements: path
    default: []
  allow_stall:
    description: Restart it even if commits wait meanwhile, because the other followers are too few.
    type: bool
    default: false
  timeout:
    description: Seconds to wait until the node streams and can be spared.
    type: int
    default: 60
  report_only: {description: Restarts nothing and fills RV(outdated)., type: bool, default: false}
  env_file: {description: The settings of this host's agent., type: path, default: /etc/devmentor/pgagent/pgagent.env}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Run the version that is installed
  pg_restart: {newer: [/usr/lib/postgresql/17/bin/postgres]}
"""

RETURN = r"""
node: {description: The node., type: str, returned: success}
outdated: {description: Files of O(newer) that are newer than the server., type: list, elements: str, returned: success}
outcome: {description: "refused, or unknown where the agent gave no answer.", type: str, returned: failure}
reasons: {description: Why not., type: list, elements: str, returned: failure}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor_ha.agents import ENV_ARGUMENT, Agents, HaError
from ansible.module_utils.devmentor_ha.operations import restart


def main():
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str"},
            "newer": {"type": "list", "elements": "path", "default": []},
            "allow_stall": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 60},
            "report_only": {"type": "bool", "default": False},
            **ENV_ARGUMENT,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        agents = Agents.of_host(params["env_file"])
        result = restart(
            agents,
            module.check_mode,
            params["node"] or agents.node,
            params["newer"],
            params["report_only"],
            params["allow_stall"],
            params["timeout"],
        )
    except HaError as error:
        module.fail_json(msg=str(error), **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
