#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: release_switch
short_description: Switch a Python service to a release that is on the host
description:
  - Sets the app's C(current) link by a rename and records the switch, as M(python_release) does; the release's entry
    point is loaded first. Restarts nothing.
options:
  app: {description: The service., type: str, required: true}
  to: {description: "A release, or V(previous) for the one that ran before the last switch.", type: str, required: true}
  entry: {description: "A console script of the release; by default C(devmentor-APP).", type: str, default: ''}
  directory: {description: Where releases are., type: path, default: /opt/devmentor}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Go back to the release before
  release_switch: {app: qwen, to: previous}
"""

RETURN = r"""
before: {description: The release it was switched to before., type: str, returned: success}
after: {description: The release it is switched to., type: str, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.releases import ReleaseError, Releases


def main():
    module = AnsibleModule(
        {
            "app": {"type": "str", "required": True},
            "to": {"type": "str", "required": True},
            "entry": {"type": "str", "default": ""},
            "directory": {"type": "path", "default": "/opt/devmentor"},
        },
        supports_check_mode=True,
    )
    given = module.params
    releases = Releases(Path(given["directory"]))
    before = releases.current(given["app"])
    try:
        after = releases.switch(given["app"], given["to"], given["entry"], module.check_mode)
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=f"{given['app']}: {error}")
    module.exit_json(changed=before != after, before=before, after=after)


if __name__ == "__main__":
    main()
