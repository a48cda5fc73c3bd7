#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: artifact_fetch
short_description: Fetch and verify artefacts on the control node
description:
  - Has the named artefacts of C(devmentor_artifacts) in the control node's cache, each verified by its sha256.
  - Runs on the control node (C(delegate_to: localhost), C(run_once: true), C(become: false)); hosts receive copies.
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
  delegate_to: localhost
  run_once: true
  become: false
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

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.artifacts import ArtifactError, select_artifacts
from ansible.module_utils.devmentor.artifacts_cache import Fetched, Fetcher


def main():
    module = AnsibleModule(
        argument_spec={
            "artifacts": {"type": "dict", "required": True},
            "names": {"type": "list", "elements": "str"},
            "cache_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    fetcher = Fetcher(Path(module.params["cache_dir"]).resolve())
    try:
        selected = select_artifacts(module.params["artifacts"], module.params["names"])
        if module.check_mode:
            results = [
                Fetched(item, fetcher.path(item), "" if fetcher.cached(item) else str(item.sources[0]))
                for item in selected
            ]
        else:
            results = [fetcher.fetch(item) for item in selected]
    except (ArtifactError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=any(result.changed for result in results),
        artifacts={
            result.artifact.name: {
                "path": str(result.path),
                "file": result.artifact.file,
                "mode": result.artifact.mode,
                "version": result.artifact.version,
                "sha256": result.artifact.sha256,
                "release": result.artifact.release,
                "source": result.source,
            }
            for result in results
        },
    )


if __name__ == "__main__":
    main()
