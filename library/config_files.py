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
      content: {description: The whole content. This or O(files[].template)., type: str}
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

import grp
import os
import pwd
import shlex
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.files import (
    Attributes,
    Current,
    FilesError,
    attribute_reasons,
    digest,
    file_reasons,
    missing_parents,
    parse_mode,
    read_current,
)
from ansible.module_utils.devmentor.unit_control import UNITS, Units
from ansible.module_utils.devmentor.units import UnitError


class Files:
    """Applies the desired state; collects what changed and the diff."""

    def __init__(self, module):
        self.module = module
        self.check = module.check_mode
        self.changed = []
        self.diff = []

    def note(self, path, reason, before="", after=""):
        self.changed.append(f"{path}: {reason}")
        self.diff.append({"before_header": path, "after_header": path, "before": before, "after": after})

    def run(self, command):
        code, out, err = self.module.run_command(command)
        if code != 0:
            raise FilesError(f"{shlex.join(command)} failed with {code}: {(err or out).strip()}")

    # users -------------------------------------------------------------
    def group(self, name, system=True):
        try:
            grp.getgrnam(name)
        except KeyError:
            self.note(f"group {name}", "missing", "", f"group {name}\n")
            if not self.check:
                self.run(["groupadd", *(["--system"] if system else []), name])

    def user(self, want):
        primary = want["group"] or want["name"]
        for group in [primary, *want["groups"]]:
            self.group(group, want["system"])
        try:
            have = pwd.getpwnam(want["name"])
        except KeyError:
            self.note(f"user {want['name']}", "missing", "", f"user {want['name']} groups {want['groups']}\n")
            if self.check:
                return
            self.run(
                ["useradd", *(["--system"] if want["system"] else []), "--gid", primary, "--home-dir", want["home"],
                 "--no-create-home", "--shell", want["shell"], want["name"]]
            )
            have = pwd.getpwnam(want["name"])
        for group in want["groups"]:
            try:
                entry = grp.getgrnam(group)
            except KeyError:
                continue  # check mode: noted above as missing
            if want["name"] in entry.gr_mem or entry.gr_gid == have.pw_gid:
                continue
            self.note(f"user {want['name']}", f"not in group {group}", "", f"{want['name']} in {group}\n")
            if not self.check:
                self.run(["usermod", "--append", "--groups", group, want["name"]])

    # paths -------------------------------------------------------------
    def own(self, path, want):
        try:
            uid, gid = pwd.getpwnam(want.owner).pw_uid, grp.getgrnam(want.group).gr_gid
        except KeyError as error:
            raise FilesError(
                f"{path}: owner {want.owner} or group {want.group} does not exist ({error}). "
                "Name it in `users`, or install the package that brings it first."
            ) from error
        os.chown(path, uid, gid, follow_symlinks=False)
        os.chmod(path, want.mode)

    def directory(self, item):
        path, want = item["path"], Attributes(item["owner"], item["group"], parse_mode(item["mode"], item["path"]))
        have = read_current(path)
        if have.kind == "link" and os.path.isdir(path):
            raise FilesError(f"{path}: is a link to {have.target}, a directory is wanted. Remove the link.")
        if have.kind not in ("absent", "directory"):
            raise FilesError(f"{path}: is a {have.kind}, a directory is wanted. Move it away and run again.")
        reasons = ["missing"] if have.kind == "absent" else attribute_reasons(have, want)
        if not reasons:
            return
        before = "" if have.kind == "absent" else have.attributes.text() + "\n"
        self.note(path, ", ".join(reasons), before, want.text() + "\n")
        if self.check:
            return
        self.parents(path)
        if have.kind == "absent":
            os.mkdir(path)
        self.own(path, want)

    def parents(self, path):
        for parent in missing_parents(path):
            os.mkdir(parent, 0o755)

    def stage(self, item, secret):
        """Stages one file if it differs. Returns (staged path, final path, wanted attributes) or None."""
        path, content = item["path"], item["content"].encode()
        want = Attributes(item["owner"], item["group"], parse_mode(item["mode"], path))
        have = read_current(path)
        if have.kind in ("directory", "other"):
            raise FilesError(f"{path}: is a {have.kind}, a file is wanted. Move it away and run again.")
        reasons = file_reasons(have, content, want)
        if not reasons:
            return None
        before, after = self.shown(have, secret), self.shown(Current("file", want, content), secret)
        self.note(path, ", ".join(reasons), before, after)
        if item["validate"] and have.content != content:
            self.validate(item, content)
        if self.check:
            return None
        return content, path, want

    @staticmethod
    def shown(state, secret):
        if state.kind != "file":
            return ""
        if secret:
            return f"(secret, sha256 {digest(state.content)}) {state.attributes.text()}\n"
        return state.content.decode("utf-8", "replace")

    def validate(self, item, content):
        words = shlex.split(item["validate"])
        if "%s" not in item["validate"]:
            raise FilesError(f"{item['path']}: validate needs %s for the staged file's path: {item['validate']!r}.")
        if not self.module.get_bin_path(words[0]):
            if self.check:
                return  # on a fresh host the package that brings the validator is not installed yet
            raise FilesError(f"{item['path']}: validator {words[0]} is not installed.")
        # Beside nothing and readable by the validator's user: a private directory of its own.
        folder = tempfile.mkdtemp(prefix="config-files-")
        try:
            staged = os.path.join(folder, os.path.basename(item["path"]))
            with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                handle.write(content)
            code, out, err = self.module.run_command([word.replace("%s", staged) for word in words])
            if code != 0:
                lines = (err.strip() or out.strip()).replace(staged, item["path"])
                raise FilesError(f"{item['path']}: `{item['validate']}` refuses the new content, kept the old: {lines}")
        finally:
            shutil.rmtree(folder)

    def put(self, content, path, want):
        self.parents(path)
        handle, temporary = tempfile.mkstemp(prefix=".config-files-", dir=os.path.dirname(path))
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            self.own(temporary, want)
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def link(self, item):
        path, have = item["path"], read_current(item["path"], with_content=False)
        if have.kind == "link" and have.target == item["target"]:
            return
        if have.kind == "directory":
            raise FilesError(f"{path}: is a directory, a link is wanted. Move it away and run again.")
        self.note(path, f"-> {item['target']}", f"{have.kind} {have.target or ''}\n", f"link {item['target']}\n")
        if self.check:
            return
        self.parents(path)
        temporary = f"{path}.config-files"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(item["target"], temporary)
        os.replace(temporary, path)

    def absent(self, path):
        have = read_current(path, with_content=False)
        if have.kind == "absent":
            return
        self.note(path, f"{have.kind} is to be absent", f"{have.kind}\n", "")
        if self.check:
            return
        if have.kind == "directory":
            os.rmdir(path)
        else:
            os.unlink(path)

    def apply(self, params):
        for user in params["users"]:
            self.user(user)
        for item in params["directories"]:
            self.directory(item)
        staged = [self.stage(item, False) for item in params["files"]]
        staged += [self.stage(item, True) for item in params["secret_files"]]
        for entry in staged:
            if entry:
                self.put(*entry)
        for item in params["links"]:
            self.link(item)
        for path in params["absent"]:
            self.absent(path)


def file_entries(secret):
    options = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "no_log": secret},
        # The action plugin of the same name has put `content` in their place before this runs.
        "template": {"type": "str"},
        "template_vars": {"type": "dict", "default": {}},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": "0644"},
        "validate": {"type": "str"},
    }
    return {
        "type": "list", "elements": "dict", "default": [], "options": options,
        "required_one_of": [("content", "template")], "mutually_exclusive": [("content", "template")],
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
            "links": {
                "type": "list", "elements": "dict", "default": [],
                "options": {"path": {"type": "path", "required": True}, "target": {"type": "str", "required": True}},
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "units": {**UNITS, "default": []},
        },
        supports_check_mode=True,
    )
    files, units = Files(module), Units(module, report=True)
    try:
        files.apply(module.params)
        units.apply(module.params["units"])
    except (FilesError, UnitError, OSError) as error:
        changed = bool(files.changed) and not module.check_mode
        module.fail_json(msg=str(error), changed=changed, changed_paths=files.changed)
    module.exit_json(changed=bool(files.changed), changed_paths=files.changed, pending=units.pending, diff=files.diff)


if __name__ == "__main__":
    main()
