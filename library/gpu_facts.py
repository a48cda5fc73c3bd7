#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: gpu_facts
short_description: The NVIDIA GPUs of a host
description:
  - Reads GPUs from NVML where the host has NVIDIA's Python binding (C(nvidia-ml-py)), else from C(nvidia-smi -q -x).
    Adds what is on the PCI bus, the NUMA nodes, and the Xid errors of the kernel's log since the boot.
  - Changes nothing and does not fail on a host without GPUs or with a broken driver - RV(gpu.error) says why, so that a
    caller can report it with everything else.
  - What cannot be read is null and named in C(unknown), of the host or of the GPU. Memory is in bytes.
options: {}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [DevMentor platform developers]
"""

EXAMPLES = r"""
- name: Learn what GPUs the host has
  gpu_facts:
  register: vllm_gpus

- name: Name them
  ansible.builtin.debug:
    msg: "{{ vllm_gpus.gpu.gpus | map(attribute='name') | join(', ') }}"
"""

RETURN = r"""
gpu:
  description: What is known about the host's GPUs.
  returned: always
  type: dict
  contains:
    source: {description: 'nvml, nvidia-smi or none.', type: str}
    error: {description: Why the driver did not answer; empty where it did., type: str}
    driver: {description: Version of the kernel module., type: str, sample: 580.95.05}
    library: {description: Version of the driver's library., type: str, sample: 580.95.05}
    cuda: {description: The newest CUDA that the driver runs., type: str, sample: '13.0'}
    pci: {description: 'Bus ids of all NVIDIA GPUs, driven or not.', type: list, elements: str}
    xids:
      description: Xid errors by GPU and code; null where the kernel's log cannot be read.
      type: list
      elements: dict
      sample: [{bus_id: '0000:3b:00', code: 79, count: 1, last: GPU has fallen off the bus.}]
    unknown: {description: Which of these cannot be read., type: list, elements: str}
    gpus:
      description: One entry a GPU, in the driver's order.
      type: list
      elements: dict
      contains:
        index: {description: The driver's number of it., type: int}
        name: {description: Its model., type: str, sample: NVIDIA H100 80GB HBM3}
        uuid: {description: Its UUID., type: str}
        bus_id: {description: Its PCI bus id., type: str, sample: '00000000:3B:00.0'}
        numa_node: {description: The NUMA node it is connected to., type: int}
        compute_capability: {description: Its CUDA compute capability., type: str, sample: '9.0'}
        memory_total: {description: All of its memory., type: int}
        memory_reserved: {description: The driver's own share of it., type: int}
        memory_free: {description: Free memory., type: int}
        ecc: {description: Whether error correction is on., type: bool}
        ecc_uncorrected: {description: Uncorrected errors since the driver was loaded., type: int}
        ecc_uncorrected_ever: {description: Uncorrected errors of its life., type: int}
        remap_pending: {description: Whether rows of memory wait for a reset to be remapped., type: bool}
        remap_failed: {description: Whether rows of memory could not be remapped., type: bool}
        mig: {description: Whether it is partitioned (MIG)., type: bool}
        mig_pending: {description: Whether it will be after a reset., type: bool}
        mig_instances: {description: 'Its parts: ids, UUID and memory.', type: list, elements: dict}
        persistence: {description: Whether the driver stays loaded without a user., type: bool}
        nvlinks: {description: NVLinks that are up., type: int}
        processes: {description: 'Who uses it: pid, memory and systemd unit.', type: list, elements: dict}
        unknown: {description: Which of these cannot be read., type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.gpu_read import read


def main():
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, gpu=read().as_dict())


if __name__ == "__main__":
    main()
