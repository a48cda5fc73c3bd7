"""Whether the GPUs of a host may carry an engine: pure comparisons of gpu.py's facts. Unknown fails.

Sources: NVIDIA's catalog of Xid errors (docs.nvidia.com/deploy/xid-errors), its GPU memory error management guide (row
remapping, ECC) and the CUDA compatibility guide (a CUDA release needs a driver that runs at least that version).
"""

from __future__ import annotations

import collections.abc as c
import dataclasses

from .gpu import Gpu, GpuFacts, same_gpu
from .hostcheck import Finding

# Xids that the catalog lays at an application's door: a GPU is as good after them as before. Any other is refused.
APPLICATION_XIDS = frozenset({13, 31, 43, 45})
_XID_REMEDIES = {
    48: "reset the GPU (nvidia-smi --gpu-reset) or reboot; replace it when it comes again",
    63: "reset the GPU or reboot, so that the row is remapped",
    64: "replace the GPU: its memory has no row left to remap to",
    74: "reseat or replace the NVLink bridge or the board",
    79: "power the host off and on; reseat or replace the GPU when it comes again",
    94: "reset the GPU or reboot, then run again",
    95: "reset the GPU or reboot, then run again",
    119: "reset the GPU or reboot, then update the driver",
    120: "reset the GPU or reboot, then update the driver",
}


@dataclasses.dataclass(frozen=True)
class GpuNeeds:
    """What is asked of a host with GPUs. `cuda`: the CUDA that the engine was built for; `accepted_xids`: codes that
    the operator has looked at; `ecc`: whether memory without error correction is refused."""

    cuda: str = ""
    accepted_xids: frozenset[int] = frozenset()
    ecc: bool = True


def check(facts: GpuFacts, needs: GpuNeeds) -> list[Finding]:
    """Everything that speaks against an engine on this host's GPUs."""
    missing = _check_driver(facts)
    if missing:
        return missing
    return [
        *_check_versions(facts, needs),
        *_check_lost(facts),
        *(finding for gpu in facts.gpus for finding in _check_gpu(gpu, needs)),
        *_check_xids(facts, needs),
    ]


def _check_driver(facts: GpuFacts) -> list[Finding]:
    """No GPU, no driver, or one whose two halves do not fit: nothing else can be known then."""
    if not facts.pci and not facts.gpus:
        remedy = "take the host out of group vllm, or set vllm_device: cpu for it"
        return [Finding("GPU", "none is on the PCI bus", remedy)]
    if facts.error and _mismatch(facts.error):
        return [
            Finding(
                "NVIDIA driver",
                f"the kernel's module ({facts.driver or 'version not known'}) and the library"
                f"{f' ({facts.library})' if facts.library else ''} do not match",
                "reboot the host, so that the module of the installed version is loaded",
            )
        ]
    if facts.error and not facts.driver:
        return [
            Finding(
                "NVIDIA driver",
                f"{len(facts.pci)} GPU(s) on the bus and no driver loaded ({facts.error})",
                "install the driver (docs/vllm.md) and reboot",
            )
        ]
    if facts.error or not facts.gpus:
        return [
            Finding(
                "NVIDIA driver",
                f"does not answer: {facts.error or 'it names no GPU'}",
                "look at `dmesg | grep NVRM` on the host, reboot it or install the driver anew",
            )
        ]
    return []


def _mismatch(error: str) -> bool:
    # nvidia-smi's words, and NVML's for NVML_ERROR_LIB_RM_VERSION_MISMATCH.
    return "mismatch" in error.lower()


def version(text: str) -> tuple[int, ...]:
    """ "535.104.05" -> (535, 104, 5); what is no number ends it."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _check_versions(facts: GpuFacts, needs: GpuNeeds) -> list[Finding]:
    findings = []
    if facts.library and facts.driver and version(facts.library) != version(facts.driver):
        findings.append(
            Finding(
                "NVIDIA driver",
                f"the kernel's module is {facts.driver}, the library {facts.library}",
                "reboot the host, so that the module of the installed version is loaded",
            )
        )
    if needs.cuda and (facts.cuda is None or version(facts.cuda) < version(needs.cuda)):
        findings.append(
            Finding(
                "NVIDIA driver",
                f"{facts.driver or 'of unknown version'} runs CUDA up to {facts.cuda or 'an unknown version'}, the "
                f"engine is built for {needs.cuda}",
                f"install a driver that runs CUDA {needs.cuda}, or pin an engine built for an older one",
            )
        )
    return findings


def _check_lost(facts: GpuFacts) -> list[Finding]:
    driven = [gpu.bus_id for gpu in facts.gpus if gpu.bus_id]
    lost = [bus for bus in facts.pci if not any(same_gpu(bus, known) for known in driven)]
    return [
        Finding(f"GPU {bus}", "is on the bus, and the driver does not have it", "reboot the host; reseat or replace it")
        for bus in lost
    ]


def _check_gpu(gpu: Gpu, needs: GpuNeeds) -> list[Finding]:
    where = f"GPU {gpu.index} ({gpu.name or 'unknown'}, {gpu.bus_id or 'place unknown'})"
    found: list[tuple[str, str]] = []
    if gpu.name is None or gpu.uuid is None or gpu.memory_total is None:
        found.append(("its name, UUID or memory cannot be read", "reboot the host; replace the GPU if it stays so"))
    if needs.ecc and gpu.ecc is not True:
        state = "is off" if gpu.ecc is False else "cannot be read"
        found.append(
            (
                f"error correction of its memory {state}",
                "nvidia-smi --ecc-config=1 and reboot, or vllm_require_ecc: false for GPUs without it",
            )
        )
    if gpu.ecc:
        errors = gpu.ecc_uncorrected if gpu.ecc_uncorrected is not None else gpu.ecc_uncorrected_ever
        if errors is None:
            found.append(
                ("its uncorrected memory errors cannot be read", "look at nvidia-smi -q -d ECC; reboot the host")
            )
        elif errors:
            found.append(
                (
                    f"has {errors} uncorrected memory errors",
                    "reset it (nvidia-smi --gpu-reset) or reboot; replace it when they come again",
                )
            )
    if gpu.remap_failed:
        found.append(("memory rows could not be remapped", "replace the GPU"))
    elif gpu.remap_pending:
        found.append(("memory rows wait to be remapped", "reset the GPU (nvidia-smi --gpu-reset) or reboot"))
    if gpu.mig is not None and gpu.mig_pending is not None and gpu.mig != gpu.mig_pending:
        found.append(
            (
                f"MIG is {_on(gpu.mig)} and will be {_on(gpu.mig_pending)} after a reset",
                "reset the GPU (nvidia-smi --gpu-reset) or reboot, then run again",
            )
        )
    return [Finding(where, problem, remedy) for problem, remedy in found]


def _on(state: bool) -> str:
    return "on" if state else "off"


def _check_xids(facts: GpuFacts, needs: GpuNeeds) -> list[Finding]:
    if facts.xids is None:
        remedy = "let journald keep the kernel's messages, or root read dmesg"
        return [Finding("Xid errors", "the kernel's log cannot be read", remedy)]
    return [
        Finding(
            f"GPU {xid.bus_id}",
            f"reported Xid {xid.code} {_times(xid.count)} since the boot{f' ({xid.last})' if xid.last else ''}",
            _xid_remedy(xid.code),
        )
        for xid in facts.xids
        if xid.code not in APPLICATION_XIDS | needs.accepted_xids
    ]


def _xid_remedy(code: int) -> str:
    first = _XID_REMEDIES.get(code, "look the code up in NVIDIA's catalog of Xid errors and reboot the host")
    return f"{first}. One that does no harm goes into vllm_accepted_xids"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def held_by_others(gpu: Gpu, units: c.Collection[str]) -> int | None:
    """Memory (bytes) of a GPU that is neither free, the driver's, nor of these units; None where it is not known."""
    if gpu.memory_total is None or gpu.memory_free is None:
        return None
    ours = [process.memory for process in gpu.processes if process.unit in units]
    if any(memory is None for memory in ours):
        return None
    used = gpu.memory_total - gpu.memory_free - (gpu.memory_reserved or 0)
    return max(0, used - sum(memory for memory in ours if memory is not None))
