"""What speaks against an engine on a host's GPUs: each reason with its remedy, and unknown is a reason."""

import dataclasses
import re
from typing import Any

import pytest

from module_utils.devmentor.gpu import MIB, Gpu, GpuFacts, GpuProcess, Xid, parse_smi
from module_utils.devmentor.gpu_health import APPLICATION_XIDS, GpuNeeds, check, held_by_others
from tests.unit.gpu.hosts import A100_MIG, H100, L40S, sample, smi

NEEDS = GpuNeeds(cuda="13.0")


def healthy(*names: str, **change: Any) -> GpuFacts:
    facts = parse_smi(smi(*(names or (H100, H100))))
    pci = tuple(str(gpu.bus_id) for gpu in facts.gpus)
    known: dict[str, Any] = {"library": facts.driver, "pci": pci, "xids": (), **change}
    return dataclasses.replace(facts, **known)


def with_gpu(**change: Any) -> GpuFacts:
    facts = healthy(H100)
    return dataclasses.replace(facts, gpus=(dataclasses.replace(facts.gpus[0], **change),))


@pytest.mark.parametrize("names", [(H100,) * 8, (L40S, L40S), (H100, L40S)])
def test_healthy_hosts_have_no_findings(names: tuple[str, ...]) -> None:
    assert check(healthy(*names), NEEDS) == []


def test_a_healthy_host_with_mig_and_an_older_driver_carries_what_is_built_for_it() -> None:
    facts = parse_smi(sample(A100_MIG))
    facts = dataclasses.replace(facts, library=facts.driver, pci=("0000:01:00.0",), xids=())
    assert check(facts, GpuNeeds(cuda="12.2")) == []
    (finding,) = check(facts, NEEDS)
    assert "535.54.03 runs CUDA up to 12.2" in finding.problem


@pytest.mark.parametrize(
    ("facts", "what", "problem", "remedy"),
    [
        (GpuFacts(error="nvidia-smi is not installed"), "GPU", "none is on the PCI bus", "vllm_device: cpu"),
        (GpuFacts(error="nvidia-smi is not installed", pci=("0000:3b:00.0",)),
         "NVIDIA driver", "no driver loaded", "install"),
        (GpuFacts("nvidia-smi", "Driver/library version mismatch", driver="580.1", pci=("0000:3b:00.0",)),
         "NVIDIA driver", r"\(580.1\) and the library do not match", "reboot"),
        (GpuFacts("nvml", "an NVML/RM version mismatch", library="535.2", pci=("0000:3b:00.0",)),
         "NVIDIA driver", r"version not known\) and the library \(535.2\)", "reboot"),
        (GpuFacts("nvidia-smi", "did not answer in 60 s", driver="580.1", pci=("0000:3b:00.0",)),
         "NVIDIA driver", "does not answer: did not answer", "reboot"),
        (GpuFacts("nvidia-smi", driver="580.1", pci=("0000:3b:00.0",)), "NVIDIA driver", "names no GPU", "reboot"),
        (healthy(library="535.1"), "NVIDIA driver", "module is 580.95.05, the library 535.1", "reboot"),
        (healthy(cuda=None), "NVIDIA driver", "an unknown version", "install a driver"),
        (healthy(xids=None), "Xid errors", "cannot be read", "root read dmesg"),
        (with_gpu(ecc=False), "GPU 0", "memory is off", "--ecc-config=1"),
        (with_gpu(ecc=None), "GPU 0", "memory cannot be read", "vllm_require_ecc"),
        (with_gpu(ecc_uncorrected=2), "GPU 0", "2 uncorrected", "reset"),
        (with_gpu(ecc_uncorrected=None, ecc_uncorrected_ever=1), "GPU 0", "1 uncorrected", "reset"),
        (with_gpu(ecc_uncorrected=None, ecc_uncorrected_ever=None), "GPU 0", "errors cannot be read", "ECC"),
        (with_gpu(remap_pending=True), "GPU 0", "wait to be remapped", "reset"),
        (with_gpu(remap_failed=True, remap_pending=True), "GPU 0", "could not be remapped", "replace"),
        (with_gpu(mig_pending=True), "GPU 0", "MIG is off and will be on", "reset"),
        (with_gpu(uuid=None), "GPU 0", "cannot be read", "replace"),
        (healthy(xids=(Xid("0000:10:00", 79, 2, "fallen off"),)),
         "GPU 0000:10:00", r"Xid 79 2 times .*fallen off", "power"),
        (healthy(xids=(Xid("0000:10:00", 999, 1, ""),)), "GPU 0000:10:00", "Xid 999 once", "vllm_accepted_xids"),
    ],
)  # fmt: skip
def test_every_reason_comes_with_its_remedy(facts: GpuFacts, what: str, problem: str, remedy: str) -> None:
    (finding,) = check(facts, NEEDS)
    assert finding.what.startswith(what)
    assert re.search(problem, finding.problem), finding.problem
    assert remedy in finding.remedy


def test_a_gpu_that_the_driver_lost_is_found() -> None:
    facts = healthy(H100, H100, H100)
    (finding,) = check(dataclasses.replace(facts, gpus=facts.gpus[:2]), NEEDS)
    assert finding.what == f"GPU {facts.pci[2]}"
    assert "driver does not have it" in finding.problem


def test_applications_xids_and_accepted_ones_are_no_reason() -> None:
    reported = tuple(Xid("0000:10:00", code, 1, "") for code in sorted(APPLICATION_XIDS | {63}))
    (finding,) = check(healthy(xids=reported), NEEDS)
    assert finding.problem == "reported Xid 63 once since the boot"
    assert check(healthy(xids=reported), GpuNeeds(accepted_xids=frozenset({63}))) == []


def test_ecc_may_be_waived() -> None:
    assert check(with_gpu(ecc=False), GpuNeeds(ecc=False)) == []
    assert check(with_gpu(ecc=True, ecc_uncorrected=1), GpuNeeds(ecc=False)) != [], "errors that were counted count"


def test_memory_of_others() -> None:
    process = GpuProcess(1, 70_000 * MIB, "vllm@chat.service")
    gpu = Gpu(0, memory_total=81559 * MIB, memory_reserved=480 * MIB, memory_free=5_079 * MIB, processes=(process,))
    assert held_by_others(gpu, ["vllm@chat.service"]) == 6_000 * MIB
    assert held_by_others(gpu, []) == 76_000 * MIB
    assert held_by_others(dataclasses.replace(gpu, memory_free=None), []) is None
    hidden = dataclasses.replace(gpu, processes=(dataclasses.replace(process, memory=None),))
    assert held_by_others(hidden, ["vllm@chat.service"]) is None
