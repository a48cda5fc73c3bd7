#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: wheelhouse
short_description: Build the wheelhouse of the services on the control node
description:
  - Has the two archives that hosts install the services from; downloads the locked wheels by hash and builds our
    wheel, reproducibly. Does nothing where they are there already.
  - An action plugin, it runs on the control node in Ansible's own Python. Use it with C(run_once: true).
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
  pythons:
    description: Versions of Python to have a release for, those of the hosts of the run.
    type: list
    elements: str
    default: ['3.13']
  locks:
    description:
      - Locks of software that is not ours, by version of Python. The release is then what the lock pins, and
        O(services) gives the installer alone.
    type: dict
    default: {}
  package: {description: The package of O(locks) that gives the release its version., type: str, default: ''}
  label:
    description: Makes another release of the same tree, with another id, as a build number would. Not with O(locks).
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
  run_once: true
  register: __python_release_wheelhouse
"""

RETURN = r"""
releases:
  description: By version of Python what follows below; with O(id), that release alone.
  type: dict
  returned: success
id:
  description: The release id (of the first version of Python).
  type: str
  returned: success
  sample: 0.1.0-0123456789ab
version: {description: The version., type: str, returned: success}
python: {description: The Python version the wheels are for., type: str, returned: success}
deps: {description: Name of the set of dependencies., type: str, returned: success}
directory: {description: Where the archives are., type: str, returned: success}
"""
