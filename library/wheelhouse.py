#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: wheelhouse
short_description: Build the wheelhouse of the services on the control node
description:
  - Has the two archives that hosts install the services from; downloads the locked wheels by hash and builds our
    wheel, reproducibly. Does nothing where they are there already.
  - Runs on the control node (C(delegate_to: localhost), C(run_once: true), C(become: false)).
options:
  services:
    description: The source tree of the services.
    type: path
    required: true
  directory:
    description: Where the archives are kept.
    type: path
    required: true
  id:
    description: A release built earlier, for a rollback. The one of the source tree where it is left out or empty.
    type: str
    default: ''
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Have the wheelhouse on the control node
  wheelhouse:
    services: services
    directory: "{{ devmentor_cache_dir }}/wheelhouse"
  delegate_to: localhost
  run_once: true
  become: false
  register: __python_release_wheelhouse
"""

RETURN = r"""
id: {description: The release id., type: str, returned: success, sample: 0.1.0-0123456789ab}
version: {description: The version., type: str, returned: success}
python: {description: The Python version the wheels are for., type: str, returned: success}
deps: {description: Name of the set of dependencies., type: str, returned: success}
directory: {description: Where the archives are., type: str, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.wheelhouse import WheelhouseError, build, built, describe, find


def main():
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "path", "required": True},
            "directory": {"type": "path", "required": True},
            "id": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    services, directory = Path(module.params["services"]), Path(module.params["directory"]).resolve()
    try:
        if module.params["id"]:
            release, changed = find(module.params["id"], directory), False
        elif module.check_mode:
            release = describe(services, directory)
            changed = not built(release)
        else:
            directory.mkdir(parents=True, exist_ok=True)
            release, changed = build(services, directory)
    except (WheelhouseError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=changed,
        id=release.id,
        version=release.version,
        python=release.python,
        deps=release.deps,
        directory=str(directory),
    )


if __name__ == "__main__":
    main()
