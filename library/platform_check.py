#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: platform_check
short_description: Ask every service of a host for real work
description:
  - Runs the checks of all components of a host side by side and returns one row per check, with evidence.
  - A check that cannot be read is C(unknown), never C(pass). The module itself does not fail; C(playbooks/verify.yml)
    judges the rows of all hosts together.
  - What the checks write expires or is removed again.
  - The action plugin of the same name makes the plan from inventory and roles.
options:
  plan:
    description: What is asked and with what (C(module_utils/devmentor/checks_base.py), class Plan), without secrets.
    type: dict
    required: true
  secrets:
    description: Keys and passwords that the checks authenticate with.
    type: dict
    required: true
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Ask this host's services
  platform_check:
    patience: 30
  register: verify_host
"""

RETURN = r"""
rows:
  description: One entry per check, with component, host, check, result (pass, fail, unknown) and evidence.
  returned: always
  type: list
  elements: dict
facts: {description: What is compared between hosts., returned: always, type: dict}
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.checks import run_all
from ansible.module_utils.devmentor.checks_base import Plan


def main():
    module = AnsibleModule(
        {
            "plan": {"type": "dict", "required": True},
            "secrets": {"type": "dict", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    rows, facts = run_all(Plan(secrets=module.params["secrets"], **module.params["plan"]))
    module.exit_json(changed=False, rows=[dataclasses.asdict(row) for row in rows], facts=facts)


if __name__ == "__main__":
    main()
