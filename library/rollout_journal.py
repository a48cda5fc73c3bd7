#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: rollout_journal
short_description: One keeper's copy of the journal of rolling updates
description:
  - Runs on each keeper. The newest of a majority of them counts (filter C(journal_newest)).
  - A roll with another target is refused while one is neither finished nor taken back.
options:
  action:
    description:
      - V(write) puts a whole newer journal in place, V(step) adds an entry, V(finish) closes it. A journal of which
        turns are left stays open as failed.
    type: str
    choices: [read, write, step, finish]
    required: true
  document: {description: The journal for V(write)., type: dict, default: {}}
  run:
    description:
      - The run that writes, for V(step) and V(finish); the journal must be the one that it has put in place.
      - This keeper must have granted it the lock, for V(write) too, and for V(read) where a run is given.
    type: str
    default: ''
  seq: {description: The number of the entry for V(step) and V(finish)., type: int, default: 0}
  step: {description: "The entry: tier, host, phase, evidence.", type: dict, default: {}}
  state:
    description: What V(finish) closes it as.
    type: str
    choices: [finished, rolled_back, abandoned]
    default: finished
  directory: {description: Where lock and journal are., type: path, default: /var/lib/devmentor/rollout}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Read the journal
  rollout_journal: {action: read}
"""

RETURN = r"""
journal: {description: The journal as it is then; empty where there is none., type: dict, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.rollout import CLOSED, DIRECTORY, Journal, RolloutError


def main():
    module = AnsibleModule(
        {
            "action": {"type": "str", "choices": ["read", "write", "step", "finish"], "required": True},
            "document": {"type": "dict", "default": {}},
            "run": {"type": "str", "default": ""},
            "seq": {"type": "int", "default": 0},
            "step": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": list(CLOSED), "default": "finished"},
            "directory": {"type": "path", "default": DIRECTORY},
        },
        required_if=[("action", "step", ["run", "seq", "step"]), ("action", "finish", ["run", "seq"])],
        supports_check_mode=True,
    )
    given, check = module.params, module.check_mode
    journal = Journal(Path(given["directory"]), locked=True)
    try:
        if given["action"] == "write":
            changed, document = journal.write(given["document"], check)
        elif given["action"] == "step":
            changed, document = journal.step(given["run"], given["seq"], given["step"], check)
        elif given["action"] == "finish":
            changed, document = journal.finish(given["run"], given["seq"], given["state"], check)
        else:
            if given["run"]:
                journal.must_hold(given["run"])
            changed, document = False, journal.read()
    except (RolloutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, journal=document)


if __name__ == "__main__":
    main()
