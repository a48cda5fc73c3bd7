#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: python_release
short_description: Install a release of a Python service and switch to it
description:
  - Installs a release offline from the archives of M(wheelhouse), beside the releases that are there, and switches the
    app's C(current) link to it by a rename. The release's entry point is loaded before the switch.
  - Archives that the host lacks are copied from O(archives) by the action plugin of the same name. Without it nothing
    changes and RV(missing) names them.
  - Apps of one host share the installed release; the second and third app cost a link.
options:
  app:
    description: The service; C(devmentor-APP) is its entry point, if not O(entry).
    type: str
    required: true
  entry: {description: A console script of the release that is loaded before the switch., type: str, default: ''}
  id: {description: The release., type: str, required: true}
  deps: {description: Its set of dependencies., type: str, required: true}
  python: {description: The Python version its wheels are for., type: str, required: true}
  archives: {description: Directory of the archives on the control node., type: path}
  directory: {description: Where releases are., type: path, default: /opt/devmentor}
  stage: {description: Install it and do not switch to it., type: bool, default: false}
  keep: {description: Releases of the app to keep the running one included., type: int, default: 3}
  compile_bytecode: {description: Compile every module; else those loaded at the start., type: bool, default: false}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Install the release
  python_release:
    app: qwen
    id: "{{ wheelhouse.id }}"
    deps: "{{ wheelhouse.deps }}"
    python: "{{ wheelhouse.python }}"
    archives: "{{ wheelhouse.directory }}"
"""

RETURN = r"""
id: {description: The release wanted., type: str, returned: success}
previous: {description: The release before it; empty where there was none., type: str, returned: when looked at}
missing: {description: Archives that were not there and not copied., type: list, elements: str, returned: success}
actions: {description: What was done (would be done in check mode)., type: list, elements: str, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.releases import ReleaseError, Releases, Wanted


def main():
    module = AnsibleModule(
        argument_spec={
            "app": {"type": "str", "required": True},
            "entry": {"type": "str", "default": ""},
            "id": {"type": "str", "required": True},
            "deps": {"type": "str", "required": True},
            "python": {"type": "str", "required": True},
            "directory": {"type": "path", "default": "/opt/devmentor"},
            "stage": {"type": "bool", "default": False},
            "keep": {"type": "int", "default": 3},
            "compile_bytecode": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    if given["keep"] < 1:
        module.fail_json(msg=f"keep is {given['keep']}: at least the running release must be kept.")
    wanted = Wanted(given["app"], given["id"], given["deps"], given["python"], given["keep"], given["entry"])
    try:
        releases = Releases(Path(given["directory"]), given["compile_bytecode"])
        outcome = releases.ensure(wanted, module.check_mode, given["stage"])
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=f"{wanted.app} {wanted.id}: {error}")
    result = {"id": wanted.id, "previous": outcome.previous, "missing": outcome.missing, "actions": outcome.actions}
    if module._diff and outcome.actions:
        result["diff"] = {"prepared": "\n".join(f"{wanted.app}: {action}" for action in outcome.actions) + "\n"}
    module.exit_json(changed=bool(outcome.actions), **result)


if __name__ == "__main__":
    main()
