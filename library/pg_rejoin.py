#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pg_rejoin
short_description: Bring a PostgreSQL node back as a follower of the leader
description:
  - Agents do this by themselves; the module is for a node that they left stopped, or whose data is to be copied anew.
  - Stops the node's server, brings its data in line with the leader's (by nothing, a rewind or a new copy) and waits
    until it streams. A node that streams is left alone with V(auto).
options:
  node: {description: The node; by default the one that the module runs on., type: str}
  method:
    description: V(auto) does the least that is enough. V(rewind) and V(reclone) are done even if the node streams.
    type: str
    choices: [auto, rewind, reclone]
    default: auto
  timeout: {description: Seconds to wait; a copy of all data may take hours., type: int, default: 14400}
  env_file: {description: The settings of this host's agent., type: path, default: /etc/devmentor/pgagent/pgagent.env}
attributes:
  check_mode: {support: full, details: How far a running server's data differs is only known once it is stopped.}
  diff_mode: {support: full}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Bring the former leader back
  pg_rejoin: {node: pg1}
  run_once: true
"""

RETURN = r"""
node: {description: The node., type: str, returned: success}
method: {description: "none, start (its data is in line), rewind or reclone.", type: str, returned: success}
why: {description: Why that method., type: str, returned: success}
outcome: {description: "refused, or unknown where the agent gave no answer.", type: str, returned: failure}
reasons: {description: Why not., type: list, elements: str, returned: failure}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor_ha.agents import ENV_ARGUMENT, Agents, HaError
from ansible.module_utils.devmentor_ha.operations import rejoin


def main():
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str"},
            "method": {"type": "str", "choices": ["auto", "rewind", "reclone"], "default": "auto"},
            "timeout": {"type": "int", "default": 14400},
            **ENV_ARGUMENT,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        agents = Agents.of_host(params["env_file"])
        result = rejoin(agents, module.check_mode, params["node"] or agents.node, params["method"], params["timeout"])
    except HaError as error:
        module.fail_json(msg=str(error), **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
