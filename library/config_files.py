#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: config_files
short_description: Everything a role puts on disk, in one call
description:
  - Ensures system users, directories, files, links and absences together. One call instead of one task per file,
    because a task costs more than all the work in it.
  - All contents are staged and validated before the first one is put in place, so that a bad one changes nothing.
  - Each file is replaced by a rename, never written in place.
options:
  users:
    description: System users to have. A group of the same name is made where C(group) is not given.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: User name., type: str, required: true}
      group: {description: Primary group; made when missing. The user's name by default., type: str}
      groups:
        description: Supplementary groups to be in; made when missing; others are left.
        type: list
        elements: str
        default: []
      home: {description: Home directory (not made by this option)., type: str, default: /nonexistent}
      shell: {description: Login shell., type: str, default: /usr/sbin/nologin}
      system: {description: Take the id from the system range., type: bool, default: true}
  directories:
    description: Directories to have, parents included (parents are root:root 0755).
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      owner: {description: Owner., type: str, default: root}
      group: {description: Group., type: str, default: root}
      mode: {description: Octal mode, quoted., type: str, default: '0755'}
  files:
    description: Files to have, with their content.
    type: list
    elements: dict
    default: []
    suboptions: &file
      path: {description: Absolute path., type: path, required: true}
      content: {description: 'The whole content. This, O(files[].src) or O(files[].template).', type: str}
      src: {description: File of the control node (the role's C(files) first) to take as it is., type: str}
      template:
        description: Template of the role that gives the content, rendered on the control node.
        type: str
      template_vars: {description: More variables for the template., type: dict, default: {}}
      owner: {description: Owner., type: str, default: root}
      group: {description: Group., type: str, default: root}
      mode: {description: Octal mode, quoted., type: str, default: '0644'}
      validate: {description: Command that proves the staged file, with C(%s) for its path., type: str}
  secret_files:
    description: As O(files), but the content is never logged, returned or shown in a diff.
    type: list
    elements: dict
    default: []
    suboptions: *file
  blocks:
    description:
      - Lines to have in a file that is not the platform's, marked as by M(ansible.builtin.blockinfile). A new block
        comes first; the file is made where it is missing.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      name: {description: What the marking lines say after C(# BEGIN) and C(# END)., type: str, required: true}
      content: {description: The lines., type: str, required: true}
  links:
    description: Symbolic links to have.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The link., type: path, required: true}
      target: {description: What it points to., type: str, required: true}
  absent:
    description: Files, links or empty directories to remove.
    type: list
    elements: path
    default: []
  units:
    description:
      - The units that read these files, as in M(service_units). They are left alone; RV(pending) says what is to do.
      - So the task that runs them need not be sent to hosts that have nothing to do, which a second run has nowhere.
    type: list
    elements: dict
    default: []
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Configure Valkey
  config_files:
    users:
      - {name: valkey, groups: [devmentor-tls]}
    directories:
      - {path: /etc/valkey, owner: valkey, group: valkey, mode: '0750'}
    files:
      - path: /etc/valkey/valkey.conf
        template: valkey.conf.j2
    secret_files:
      - path: /etc/valkey/users.acl
        group: valkey
        mode: '0640'
        template: users.acl.j2
    units: "{{ __cache_units }}"
  register: __cache_configured

- name: Run Valkey
  service_units:
    units: "{{ __cache_units }}"
  when: __cache_configured.pending | length > 0
"""

RETURN = r"""
changed_paths:
  description: What was (or would be) changed, with the reason.
  returned: always
  type: list
  elements: str
  sample: ["/etc/valkey/valkey.conf: content"]
pending:
  description: What M(service_units) would do to O(units) or wait for.
  returned: always
  type: list
  elements: str
  sample: ["valkey-server.service: restart (newer than the process: /etc/valkey/valkey.conf)"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.file_control import Files
from ansible.module_utils.devmentor.files import FilesError
from ansible.module_utils.devmentor.settled import record_of, write
from ansible.module_utils.devmentor.unit_control import UNITS, Units
from ansible.module_utils.devmentor.units import UnitError


def file_entries(secret):
    options = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "no_log": secret},
        # The action plugin of the same name has put `content` in their place before this runs.
        "src": {"type": "str"},
        "template": {"type": "str"},
        "template_vars": {"type": "dict", "default": {}},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": "0644"},
        "validate": {"type": "str"},
    }
    return {
        "type": "list", "elements": "dict", "default": [], "options": options,
        "required_one_of": [("content", "src", "template")], "mutually_exclusive": [("content", "src", "template")],
    }  # fmt: skip


def main():
    module = AnsibleModule(
        argument_spec={
            "users": {
                "type": "list", "elements": "dict", "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "group": {"type": "str"},
                    "groups": {"type": "list", "elements": "str", "default": []},
                    "home": {"type": "str", "default": "/nonexistent"},
                    "shell": {"type": "str", "default": "/usr/sbin/nologin"},
                    "system": {"type": "bool", "default": True},
                },
            },
            "directories": {
                "type": "list", "elements": "dict", "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0755"},
                },
            },
            "files": file_entries(secret=False),
            "secret_files": file_entries(secret=True),
            "blocks": {
                "type": "list", "elements": "dict", "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "name": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                },
            },
            "links": {
                "type": "list", "elements": "dict", "default": [],
                "options": {"path": {"type": "path", "required": True}, "target": {"type": "str", "required": True}},
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "units": {**UNITS, "default": []},
            # From the action plugin of the same name: {directory, name, fingerprint} (settled.py).
            "record": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    files, units = Files(module), Units(module, report=True)
    try:
        files.apply(module.params)
        units.apply(module.params["units"])
        if module.params["record"] and not module.check_mode:
            given = module.params["record"]
            write(given["directory"], given["name"], record_of(given["fingerprint"], module.params))
    except (FilesError, UnitError, OSError) as error:
        changed = bool(files.changed) and not module.check_mode
        module.fail_json(msg=str(error), changed=changed, changed_paths=files.changed)
    module.exit_json(changed=bool(files.changed), changed_paths=files.changed, pending=units.pending, diff=files.diff)


if __name__ == "__main__":
    main()
