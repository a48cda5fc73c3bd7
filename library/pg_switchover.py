#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pg_switchover
short_description: Move the lead of PostgreSQL to another node while the leader lives
description:
  - Pauses the poolers, stops the leader, promotes the target, leads the poolers to it and resumes them; clients of the
    poolers wait and see no error. The former leader starts as a follower.
  - Refused, with all reasons, where it would not be smooth. A failure before the promotion goes back to the old leader.
  - Runs on any host with a failover agent; a follower's agent carries it out.
options:
  target: {description: The node to lead; by default the streaming follower of the highest priority., type: str}
  deadline_s:
    description: "Seconds that open transactions may take to end while the poolers pause. Range: 0.1..60."
    type: float
    default: 2
  env_file: {description: The settings of this host's agent., type: path, default: /etc/devmentor/pgagent/pgagent.env}
attributes:
  check_mode: {support: full, details: The same checks; RV(reasons) says who would lead.}
  diff_mode: {support: full}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Let pg2 lead
  pg_switchover: {target: pg2}
  run_once: true
"""

RETURN = r"""
outcome:
  description: "done, none (the target leads already), planned (check mode), refused, aborted or unknown."
  type: str
  returned: always
reasons: {description: Why not; in check mode what is planned., type: list, elements: str, returned: always}
stall_s: {description: Seconds from the poolers' pause to their end., type: float, returned: when it was carried out}
epoch: {description: The epoch that this was (or would be)., type: int, returned: when an agent answered}
rule: {description: The rule that is committed now., type: dict, returned: when an agent answered}
before: {description: The rule that it replaced., type: dict, returned: when an agent answered}
steps:
  description: What was done, with seconds since the beginning.
  type: list
  elements: dict
  returned: when an agent answered
controller: {description: The node whose agent did it., type: str, returned: when an agent answered}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor_ha.agents import ENV_ARGUMENT, Agents, HaError
from ansible.module_utils.devmentor_ha.operations import switchover


def main():
    module = AnsibleModule(
        argument_spec={"target": {"type": "str"}, "deadline_s": {"type": "float", "default": 2}, **ENV_ARGUMENT},
        supports_check_mode=True,
    )
    params = module.params
    if not 0.1 <= params["deadline_s"] <= 60:
        module.fail_json(msg=f"deadline_s: {params['deadline_s']} is outside of 0.1..60")
    try:
        agents = Agents.of_host(params["env_file"])
        result = switchover(agents, module.check_mode, params["target"], params["deadline_s"])
    except HaError as error:
        module.fail_json(msg=str(error), **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
