#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: host_preflight
short_description: Whether a machine can carry its groups
description:
  - Compares operating system, cores, memory, disks, ports and networks of a host with what its groups need.
  - Changes nothing and does not fail; every finding is returned, so that one report can hold those of all hosts.
  - The action plugin of the same name adds what only the control node can see, an unreachable host and a wrong clock.
options:
  debian: {description: Debian releases that the host's groups run on., type: list, elements: str, required: true}
  needs:
    description: Minima of the host's groups; their sum must fit.
    type: list
    elements: dict
    default: []
    suboptions:
      group: {description: Inventory group., type: str, required: true}
      cores: {description: Processor cores., type: float, required: true}
      memory_gib: {description: Memory in GiB., type: float, required: true}
  disks:
    description: What the file systems under these paths must offer.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: A directory; one that does not exist yet counts as its nearest parent.
        type: path
        required: true
      free_gib: {description: Free space in GiB., type: float, default: 0}
      capacity_gib: {description: Size of the file system in GiB., type: float, default: 0}
  ports:
    description: Ports of the host's groups, such as C(6333/tcp), and what they are called.
    type: dict
    default: {}
  units:
    description: Units of the platform, patterns allowed. They may hold its ports.
    type: list
    elements: str
    default: []
  gpu:
    description: What an engine needs of the host's GPUs; without it they are not looked at.
    type: dict
    suboptions:
      cuda: {description: The CUDA that the driver must run., type: str, default: ""}
      ecc: {description: Whether memory without error correction is refused., type: bool, default: true}
      accepted_xids: {description: Xid errors that are no reason to refuse., type: list, elements: int, default: []}
  rollout_lock: {description: Whether the lock of a rolling update is a finding., type: bool, default: true}
  vip: {description: Virtual address that a network of the host must contain; empty for none., type: str, default: ""}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Compare the machine with its groups
  host_preflight:
    debian: ["13"]
    needs: [{group: qdrant, cores: 4, memory_gib: 16}]
    disks: [{path: /var/lib, free_gib: 2}]
    ports: {"6333/tcp": qdrant_http}
"""

RETURN = r"""
findings:
  description: What stands in the way, each with what, problem and remedy; empty on a fit host.
  returned: always
  type: list
  elements: dict
cores: {description: Processor cores that the host has., returned: always, type: int}
memory_gib: {description: Memory that the host has, in GiB., returned: always, type: float}
time: {description: The host's clock, seconds since the epoch., returned: always, type: float}
"""

import json
import os
import pathlib
import platform
import subprocess
import sys
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor import gpu_health, gpu_read, hostcheck, rollout

ARGUMENTS = {
    "debian": {"type": "list", "elements": "str", "required": True},
    "needs": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "group": {"type": "str", "required": True},
            "cores": {"type": "float", "required": True},
            "memory_gib": {"type": "float", "required": True},
        },
    },
    "disks": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "free_gib": {"type": "float", "default": 0},
            "capacity_gib": {"type": "float", "default": 0},
        },
    },
    "ports": {"type": "dict", "default": {}},
    "units": {"type": "list", "elements": "str", "default": []},
    "gpu": {
        "type": "dict",
        "options": {
            "cuda": {"type": "str", "default": ""},
            "ecc": {"type": "bool", "default": True},
            "accepted_xids": {"type": "list", "elements": "int", "default": []},
        },
    },
    "rollout_lock": {"type": "bool", "default": True},
    "vip": {"type": "str", "default": ""},
}


def networks():
    """The networks that the host is connected to, such as 10.0.0.7/24."""
    answer = subprocess.run(["ip", "-j", "addr"], capture_output=True, text=True, check=True)
    return [
        f"{address['local']}/{address['prefixlen']}"
        for link in json.loads(answer.stdout)
        for address in link.get("addr_info", [])
        # A virtual address that is up has a prefix of 32: it must not vouch for itself.
        if link.get("ifname") != "lo" and address["prefixlen"] not in (32, 128)
    ]


def gpu_findings(need):
    """What speaks against an engine on the host's GPUs."""
    needs = gpu_health.GpuNeeds(need["cuda"], frozenset(need["accepted_xids"]), need["ecc"])
    return gpu_health.check(gpu_read.read(), needs)


def main():
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    want = module.params
    now = time.time()
    cores = len(os.sched_getaffinity(0))
    memory = hostcheck.read_memory()
    findings = [
        *hostcheck.check_os(pathlib.Path("/etc/os-release").read_text(), want["debian"]),
        *hostcheck.check_machine(
            platform.machine(), pathlib.Path("/proc/1/comm").read_text().strip(), os.geteuid(), sys.version_info[:2]
        ),
        *hostcheck.check_capacity(cores, memory, want["needs"]),
        *hostcheck.check_disks(
            want["disks"], {disk["path"]: hostcheck.read_disk(disk["path"]) for disk in want["disks"]}
        ),
        *hostcheck.check_ports(hostcheck.read_listeners(set(want["ports"])), want["ports"], want["units"]),
        *(hostcheck.check_rollout_lock(pathlib.Path(rollout.DIRECTORY)) if want["rollout_lock"] else []),
        *(gpu_findings(want["gpu"]) if want["gpu"] else []),
        *(hostcheck.check_vip(want["vip"], networks()) if want["vip"] else []),
    ]
    module.exit_json(
        changed=False,
        findings=[vars(finding) for finding in findings],
        cores=cores,
        memory_gib=round(memory / hostcheck.GIB, 1),
        time=now,
    )


if __name__ == "__main__":
    main()
