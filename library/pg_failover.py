#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pg_failover
short_description: Replace a PostgreSQL leader that is lost
description:
  - Agents do this by themselves within seconds; the module is for when they cannot, or may not (a pause).
  - Runs on any host with a failover agent; a follower's agent carries it out (docs/postgres-ha-protocol.md, Failover).
  - A leader that is healthy is not replaced without O(force); M(pg_switchover) moves it without a failed statement.
  - Where too few followers answer to have every acknowledged commit, it is refused. Nobody is promoted then.
options:
  target:
    description: The node to lead. It must be as advanced as the best one; by default the best one leads.
    type: str
  force: {description: Replace a healthy leader too., type: bool, default: false}
  force_data_loss:
    description:
      - Go on although commits that were acknowledged may be on nodes that do not answer, and lose those.
      - It is the number of the epoch that the failover gets, as check mode names it, so that it is given for one
        situation only. Every try takes an epoch.
    type: int
  reason: {description: Written to the agents' logs., type: str, default: asked for by an operator}
  env_file: {description: The settings of this host's agent., type: path, default: /etc/devmentor/pgagent/pgagent.env}
attributes:
  check_mode: {support: full, details: RV(reasons) says who would lead and who does not answer.}
  diff_mode: {support: full}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Replace the leader that is lost
  pg_failover: {reason: pg1 burnt}
  run_once: true

- name: Go on with what is left, at the epoch that the refusal named
  pg_failover: {force_data_loss: 7}
  run_once: true
"""

RETURN = r"""
outcome: {description: "done, planned (check mode), refused, aborted or unknown.", type: str, returned: always}
reasons: {description: Why not; in check mode what is planned., type: list, elements: str, returned: always}
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
from ansible.module_utils.devmentor_ha.operations import failover


def main():
    module = AnsibleModule(
        argument_spec={
            "target": {"type": "str"},
            "force": {"type": "bool", "default": False},
            "force_data_loss": {"type": "int"},
            "reason": {"type": "str", "default": "asked for by an operator"},
            **ENV_ARGUMENT,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        agents = Agents.of_host(params["env_file"])
        result = failover(
            agents, module.check_mode, params["target"], params["force"], params["force_data_loss"], params["reason"]
        )
    except HaError as error:
        module.fail_json(msg=str(error), **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
