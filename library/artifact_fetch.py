#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: artifact_fetch
short_description: Fetch and verify artefacts on the control node
description:
  - Has the named artefacts of C(devmentor_artifacts) in the control node's cache, each verified by its sha256.
  - An action plugin, it runs on the control node in Ansible's own Python; hosts receive copies. Use it with
    C(run_once: true).
  - Sources are tried in order; a wrong checksum ends it at once and keeps nothing. An interrupted download from a URL
    goes on where it ended.
options:
  artifacts:
    description: The declarations, as in docs/artifacts.md.
    type: dict
    required: true
  names:
    description: The artefacts to have. All of O(artifacts) where it is left out.
    type: list
    elements: str
  cache_dir:
    description: The cache, with C(artifacts/NAME/SHA256/FILE) in it; relative C(file:) sources are relative to it.
    type: path
    required: true
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Have the Qdrant binary on the control node
  artifact_fetch:
    artifacts: "{{ devmentor_artifacts_all }}"
    names: [qdrant]
    cache_dir: "{{ devmentor_cache_dir }}"
  run_once: true
  register: __qdrant_fetched

- name: Install it
  ansible.builtin.copy:
    src: "{{ __qdrant_fetched.artifacts.qdrant.path }}"
    dest: "/opt/devmentor/qdrant/releases/{{ __qdrant_fetched.artifacts.qdrant.release }}/"
    mode: "0755"
"""

RETURN = r"""
artifacts:
  description: By name - C(path) on the control node, C(file), C(mode), C(version), C(sha256), C(release) (version
    and start of checksum, a folder name) and C(source) (where it came from now, empty when cached).
  type: dict
  returned: success
"""
