#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: platform_teardown
short_description: Remove the platform from a host
description:
  - Stops and disables the units of a host's groups, removes their packages, software and configuration.
  - Data is removed only when asked. What is to be done is decided from what is there, so a run that was interrupted is
    finished by the next one, and a further run changes nothing.
options:
  footprint:
    description: What the platform leaves on a host, by group (C(devmentor_footprint)).
    type: dict
    required: true
  groups: {description: Groups of the host to remove., type: list, elements: str, required: true}
  remove_data: {description: Remove the data as well., type: bool, default: false}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Remove the platform, keep its data
  platform_teardown:
    footprint: "{{ devmentor_footprint }}"
    groups: "{{ group_names + ['all'] }}"
"""

RETURN = r"""
actions: {description: What was (or would be) removed., returned: always, type: list, elements: str}
kept: {description: Data that is still on the host., returned: always, type: list, elements: str}
"""

import fnmatch
import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor import teardown


def read_current(module, footprint):
    """The host as it is, as far as the footprint speaks of it."""
    patterns = sorted({pattern for entry in footprint.values() for pattern in entry.get("units", [])})

    def names(*command):
        _, out, _ = module.run_command(["systemctl", *command, "--plain", "--no-legend", "--full", *patterns])
        return [line.split() for line in out.splitlines() if line.strip()]

    loaded = names("list-units", "--all")
    running = ("active", "activating", "reloading", "failed")
    active = {unit[0] for unit in loaded if len(unit) > 2 and unit[2] in running}
    enabled = {unit[0] for unit in names("list-unit-files") if unit[1:2] == ["enabled"]}
    _, out, _ = module.run_command(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n"], check_rc=True)
    installed = {line.split()[-1] for line in out.splitlines() if line.startswith(("ii", "iF", "iU", "iH", "hi"))}
    if module.params["remove_data"]:
        # A removed package whose configuration is still there can still be purged.
        installed |= {line.split()[-1] for line in out.splitlines() if line.startswith("rc")}
    files = os.listdir(teardown.UNIT_DIRECTORY)
    ours = {n for n in files if any(fnmatch.fnmatch(n.removesuffix(".d"), pattern) for pattern in patterns)}
    paths = {
        path
        for entry in footprint.values()
        for kind in ("paths", "data")
        for path in entry.get(kind, [])
        if os.path.lexists(path)
    }
    return teardown.Current(
        frozenset(active), frozenset(enabled), frozenset(ours), frozenset(installed), frozenset(paths)
    )


def remove(module, path):
    """Delete a file, link or folder. What another process deletes meanwhile is no error."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        module.fail_json(msg=f"{path} cannot be deleted: {error}. Unmount it or delete it by hand, then run again.")


def main():
    module = AnsibleModule(
        {
            "footprint": {"type": "dict", "required": True},
            "groups": {"type": "list", "elements": "str", "required": True},
            "remove_data": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    footprint = module.params["footprint"]
    groups = module.params["groups"]
    todo = teardown.decide(footprint, groups, read_current(module, footprint), module.params["remove_data"])
    if not module.check_mode:
        for unit in todo.stop:
            # One by one, in order; a unit that fails to stop is a reason to look before anything is deleted.
            status, _, error = module.run_command(["systemctl", "stop", unit])
            if status and "not loaded" not in error:
                module.fail_json(msg=f"{unit} does not stop: {error.strip()}. See journalctl -u {unit}, run again.")
        if todo.disable:
            module.run_command(["systemctl", "disable", "--quiet", *todo.disable], check_rc=True)
        if todo.packages:
            # The platform's own hold is no reason to keep them.
            apt = ["apt-get", "-y", "--allow-change-held-packages", "-o", "DPkg::Lock::Timeout=120"]
            module.run_command(
                [*apt, "purge" if todo.purge else "remove", *todo.packages],
                environ_update={"DEBIAN_FRONTEND": "noninteractive"},
                check_rc=True,
            )
        for path in todo.paths:
            remove(module, path)
        if todo.anything:
            module.run_command(["systemctl", "daemon-reload"], check_rc=True)
            # A unit that failed is remembered by name; without this a later verify would still see it.
            module.run_command(["systemctl", "reset-failed"])
    kept = [
        path
        for _, entry in teardown.select(footprint, groups)
        for path in entry.get("data", [])
        if os.path.lexists(path) and not (module.check_mode and path in todo.paths)
    ]
    module.exit_json(changed=todo.anything, actions=todo.lines(), kept=kept)


if __name__ == "__main__":
    main()
