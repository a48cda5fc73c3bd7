#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: artifact_install
short_description: Artefacts of the control node on a host, beside the versions that are there
description:
  - Installs files that M(artifact_fetch) has fetched and verified. One task for all artefacts of a role.
  - A file counts as present when its SHA-256 is the one wanted. What was hashed is remembered beside it (a dot file
    with size and time), so that models of many GB are not read again by every run.
  - The action plugin of the same name copies only what is missing and has the copy verified.
options:
  artifacts:
    description: The files to have; owned by root.
    type: list
    elements: dict
    required: true
    suboptions:
      src: {description: File on the control node., type: path, required: true}
      path: {description: Absolute path on the host. Parents are made., type: path, required: true}
      sha256: {description: Checksum of the content., type: str, required: true}
      mode: {description: Octal mode, quoted., type: str, default: '0644'}
  copied:
    description: Set by the action plugin after it has copied; what is not right then is an error.
    type: bool
    default: false
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Install Qdrant beside the versions that are there
  artifact_install:
    artifacts:
      - src: "{{ fetched.artifacts.qdrant.path }}"
        path: "/opt/devmentor/qdrant/releases/{{ fetched.artifacts.qdrant.release }}/qdrant"
        sha256: "{{ fetched.artifacts.qdrant.sha256 }}"
        mode: "0755"
"""

RETURN = r"""
missing:
  description: Paths that are absent or whose content is another.
  returned: always
  type: list
  elements: str
"""

import hashlib
import json
import os

from ansible.module_utils.basic import AnsibleModule

CHUNK = 1 << 20


def stamp_path(path):
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.verified")


def stamp_of(path, sha256):
    info = os.stat(path)
    return {"sha256": sha256, "size": info.st_size, "mtime_ns": info.st_mtime_ns, "ctime_ns": info.st_ctime_ns}


def digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def remembered(path):
    """The stamp written when the file was last hashed; empty where there is none that can be read."""
    try:
        with open(stamp_path(path)) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return {}


def present(path, sha256):
    if not os.path.isfile(path):
        return False
    return remembered(path) == stamp_of(path, sha256) or digest(path) == sha256


def remember(path, sha256):
    stamp = stamp_of(path, sha256)
    if remembered(path) == stamp:
        return
    temporary = f"{stamp_path(path)}.new"
    with open(temporary, "w") as stream:
        json.dump(stamp, stream)
    os.replace(temporary, stamp_path(path))


def main():
    module = AnsibleModule(
        argument_spec={
            "artifacts": {
                "type": "list", "elements": "dict", "required": True,
                "options": {
                    "src": {"type": "path", "required": True},
                    "path": {"type": "path", "required": True},
                    "sha256": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "copied": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )  # fmt: skip
    missing, changed = [], module.params["copied"]
    for item in module.params["artifacts"]:
        path, sha256 = item["path"], item["sha256"].lower()
        if not present(path, sha256):
            missing.append(path)
            if not module.check_mode:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            continue
        # Owner and mode first: both set the inode's time, which the stamp holds.
        attributes = {"path": path, "owner": "root", "group": "root", "mode": item["mode"]}
        changed = module.set_fs_attributes_if_different({**module.load_file_common_arguments(attributes)}, changed)
        if not module.check_mode:
            remember(path, sha256)
    if missing and module.params["copied"]:
        module.fail_json(
            msg=f"{', '.join(missing)}: not the wanted content after the copy. Another run or process writes there, or "
            "the disk is failing; look at it and run again.",
            missing=missing,
        )
    module.exit_json(changed=changed or bool(missing), missing=missing)


if __name__ == "__main__":
    main()
