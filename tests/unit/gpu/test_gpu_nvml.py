"""NVML's answers as facts, from a binding with the names and shapes of nvidia-ml-py 13."""

from types import SimpleNamespace
from typing import Any

import pytest

from module_utils.devmentor.gpu import MIB
from module_utils.devmentor.gpu_nvml import NvmlError, cuda_version, library_version, read_nvml


class NVMLError(Exception):
    """NVML's own, of the fake."""


class Binding:
    """Two GPUs: an H100 with MIG and one instance, and one that has fallen off the bus."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 0x02000028
    NVML_NVLINK_MAX_LINKS = 36
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_AGGREGATE_ECC = 1

    def __init__(self, **answers: Any) -> None:
        self.stopped = False
        self.answers: dict[str, Any] = {
            "nvmlDeviceGetCount": 2,
            "nvmlSystemGetDriverVersion": "580.95.05",
            "nvmlSystemGetNVMLVersion": "13.580.95.05",
            "nvmlSystemGetCudaDriverVersion_v2": 13000,
            "nvmlDeviceGetName": b"NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetUUID": lambda handle: "MIG-1" if handle == "mig0" else "GPU-1",
            "nvmlDeviceGetEccMode": [1, 1],
            "nvmlDeviceGetMigMode": [1, 1],
            "nvmlDeviceGetRemappedRows": (0, 1, 1, 0),
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:3B:00.0"),
            "nvmlDeviceGetPersistenceMode": 1,
            "nvmlDeviceGetMaxMigDeviceCount": 7,
            "nvmlDeviceGetGpuInstanceId": 3,
            "nvmlDeviceGetComputeInstanceId": 0,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7, usedGpuMemory=5 * MIB)],
            **answers,
        }

    def nvmlInit(self) -> None:
        if error := self.answers.get("init"):
            raise error

    def nvmlShutdown(self) -> None:
        self.stopped = True

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index:
            raise NVMLError("GPU is lost")
        return "gpu0"

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _handle: str, index: int) -> str:
        if index:
            raise NVMLError("Not Found")
        return "mig0"

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> SimpleNamespace:
        if handle == "mig0":
            return SimpleNamespace(total=19968 * MIB, free=19900 * MIB)
        reserved = {"reserved": 480 * MIB} if version == self.nvmlMemory_v2 else {}
        return SimpleNamespace(total=81559 * MIB, free=81000 * MIB, **reserved)

    def nvmlDeviceGetTotalEccErrors(self, _handle: str, kind: int, counter: int) -> int:
        assert kind == 1, "uncorrected ones"
        return (0, 4)[counter]

    def nvmlDeviceGetNvLinkState(self, _handle: str, link: int) -> int:
        if link >= 18:
            raise NVMLError("Invalid Argument")
        return int(link < 17)

    def __getattr__(self, name: str) -> Any:
        if name not in self.answers:
            raise AttributeError(name)
        answer = self.answers[name]

        def call(*arguments: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return call


def test_everything_nvml_says_is_a_fact() -> None:
    binding = Binding()
    facts = read_nvml(binding)
    assert binding.stopped
    assert (facts.source, facts.driver, facts.library, facts.cuda) == ("nvml", "580.95.05", "580.95.05", "13.0")
    gpu, lost = facts.gpus
    assert (gpu.name, gpu.uuid, gpu.bus_id) == ("NVIDIA H100 80GB HBM3", "GPU-1", "00000000:3B:00.0")
    assert (gpu.memory_total, gpu.memory_reserved, gpu.memory_free) == (81559 * MIB, 480 * MIB, 81000 * MIB)
    assert (gpu.ecc, gpu.ecc_uncorrected, gpu.ecc_uncorrected_ever) == (True, 0, 4)
    assert (gpu.remap_pending, gpu.remap_failed) == (True, False)
    assert (gpu.compute_capability, gpu.nvlinks, gpu.persistence) == ("9.0", 17, True)
    assert [(i.uuid, i.gpu_instance, i.memory_total) for i in gpu.mig_instances] == [("MIG-1", 3, 19968 * MIB)]
    assert [(p.pid, p.memory) for p in gpu.processes] == [(7, 5 * MIB)]
    assert (lost.name, lost.memory_total, lost.ecc) == (None, None, None)
    assert "uuid" in lost.unknown


def test_what_an_older_driver_does_not_know_is_unknown() -> None:
    binding = Binding(
        nvmlDeviceGetEccMode=NVMLError("Not Supported"), nvmlDeviceGetMigMode=NVMLError("Not Supported"),
        nvmlDeviceGetRemappedRows=NVMLError("Function Not Found"), nvmlDeviceGetCount=1,
    )  # fmt: skip
    del binding.answers["nvmlDeviceGetCudaComputeCapability"]
    (gpu,) = read_nvml(binding).gpus
    assert (gpu.ecc, gpu.mig, gpu.remap_failed, gpu.compute_capability) == (None, None, None, None)
    assert gpu.mig_instances == ()
    assert {"ecc", "mig", "remap_failed", "compute_capability"} <= set(gpu.unknown)


def test_a_mismatch_is_an_error_that_names_the_library() -> None:
    with pytest.raises(NvmlError, match="mismatch") as raised:
        read_nvml(Binding(init=NVMLError("RM has detected an NVML/RM version mismatch.")))
    assert raised.value.library == "580.95.05"
    with pytest.raises(NvmlError, match="how many"):
        read_nvml(Binding(nvmlDeviceGetCount=NVMLError("Unknown Error")))


def test_versions() -> None:
    assert [cuda_version(number) for number in (12020, 13000, 0, None)] == ["12.2", "13.0", None, None]
    assert library_version(Binding(nvmlSystemGetNVMLVersion=NVMLError("x"))) is None
