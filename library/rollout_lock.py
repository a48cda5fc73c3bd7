#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: rollout_lock
short_description: One keeper's part of the platform's lock for rolling updates
description:
  - Runs on each keeper. The lock is held where a majority of the keepers has granted it (filter C(lock_verdict)).
  - Does not fail where another run holds it; what is returned says who and for how long.
options:
  action: {description: What to do., type: str, choices: [acquire, release, show], required: true}
  run: {description: The run that wants it., type: str, default: ''}
  owner: {description: "Who runs it, for those that find the lock.", type: str, default: ''}
  take_over: {description: Replace the lock of exactly this run., type: str, default: ''}
  directory: {description: Where lock and journal are., type: path, default: /var/lib/devmentor/rollout}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Take the platform's lock
  rollout_lock:
    action: acquire
    run: 20260101T120000-1a2b3c
    owner: anna@control1
"""

RETURN = r"""
held: {description: Whether there is a lock now., type: bool, returned: success}
mine: {description: Whether it is this run's., type: bool, returned: success}
run: {description: The run that holds it., type: str, returned: success}
owner: {description: Who runs that., type: str, returned: success}
age_s: {description: Seconds since it was taken., type: int, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.rollout import DIRECTORY, Lock, RolloutError


def main():
    module = AnsibleModule(
        {
            "action": {"type": "str", "choices": ["acquire", "release", "show"], "required": True},
            "run": {"type": "str", "default": ""},
            "owner": {"type": "str", "default": ""},
            "take_over": {"type": "str", "default": ""},
            "directory": {"type": "path", "default": DIRECTORY},
        },
        required_if=[("action", "acquire", ["run", "owner"]), ("action", "release", ["run"])],
        supports_check_mode=True,
    )
    given = module.params
    lock = Lock(Path(given["directory"]))
    try:
        if given["action"] == "acquire":
            changed, seen = lock.acquire(given["run"], given["owner"], given["take_over"], module.check_mode)
        elif given["action"] == "release":
            changed, seen = lock.release(given["run"], module.check_mode)
        else:
            changed, seen = False, lock.show(given["run"])
    except (RolloutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, **seen)


if __name__ == "__main__":
    main()
