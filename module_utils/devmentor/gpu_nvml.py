"""A host's GPUs from NVML, through NVIDIA's binding nvidia-ml-py (`pynvml`), as the same facts that gpu.py parses.

The binding comes in as an argument: it is there only on GPU hosts, and tests give their own.
"""

from __future__ import annotations

import collections.abc as c
from typing import Any

from .gpu import Gpu, GpuFacts, GpuProcess, MigInstance


class NvmlError(Exception):
    """NVML itself cannot be used; `library` is its version where it says one."""

    def __init__(self, message: str, library: str | None = None) -> None:
        super().__init__(message)
        self.library = library


class _Nvml:
    """NVML's functions by name; one that fails, is not supported or not there gives None."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def __call__(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._binding, name, None)
        if function is None:
            return None
        try:
            value = function(*arguments)
        except self._binding.NVMLError:
            return None
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def constant(self, name: str, default: int) -> int:
        return int(getattr(self._binding, name, default))


def read_nvml(binding: Any) -> GpuFacts:
    """Facts from NVML. Raises NvmlError where it does not start, as when driver and library do not match."""
    try:
        binding.nvmlInit()
    except binding.NVMLError as error:
        raise NvmlError(f"NVML does not start: {error}", library_version(binding)) from error
    ask = _Nvml(binding)
    try:
        count = ask("nvmlDeviceGetCount")
        if count is None:
            raise NvmlError("NVML does not say how many GPUs there are", library_version(binding))
        return GpuFacts(
            "nvml",
            driver=ask("nvmlSystemGetDriverVersion"),
            library=library_version(binding),
            cuda=cuda_version(ask("nvmlSystemGetCudaDriverVersion_v2")),
            gpus=tuple(_gpu(ask, index) for index in range(count)),
        )
    finally:
        ask("nvmlShutdown")


def library_version(binding: Any) -> str | None:
    """Version of the library. NVML puts CUDA's major before it (12.535.54.03) and tells it without being started."""
    version = _Nvml(binding)("nvmlSystemGetNVMLVersion")
    return str(version).partition(".")[2] or None if version else None


def cuda_version(number: int | None) -> str | None:
    """13000 -> 13.0 (nvmlSystemGetCudaDriverVersion: 1000 times the major, 10 times the minor)."""
    return None if not number else f"{number // 1000}.{number % 1000 // 10}"


def _bool(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _gpu(ask: _Nvml, index: int) -> Gpu:
    handle = ask("nvmlDeviceGetHandleByIndex", index)
    if handle is None:  # on the bus and lost: nothing of it is known
        return Gpu(index)
    # The second version of the call knows the driver's own share; the first counts it as used.
    version = ask.constant("nvmlMemory_v2", 0)
    memory = (ask("nvmlDeviceGetMemoryInfo", handle, version) if version else None) or ask(
        "nvmlDeviceGetMemoryInfo", handle
    )
    ecc, mig = ask("nvmlDeviceGetEccMode", handle), ask("nvmlDeviceGetMigMode", handle)
    remapped = ask("nvmlDeviceGetRemappedRows", handle)
    capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
    uncorrected = ask.constant("NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1)
    pci = ask("nvmlDeviceGetPciInfo", handle)
    instances = _instances(ask, handle) if mig and mig[0] else ()
    return Gpu(
        index=index,
        name=ask("nvmlDeviceGetName", handle),
        uuid=ask("nvmlDeviceGetUUID", handle),
        bus_id=_plain(getattr(pci, "busId", None)),
        memory_total=getattr(memory, "total", None),
        memory_reserved=getattr(memory, "reserved", None),
        memory_free=getattr(memory, "free", None),
        ecc=_bool(ecc[0]) if ecc else None,
        ecc_uncorrected=ask("nvmlDeviceGetTotalEccErrors", handle, uncorrected, ask.constant("NVML_VOLATILE_ECC", 0)),
        ecc_uncorrected_ever=ask(
            "nvmlDeviceGetTotalEccErrors", handle, uncorrected, ask.constant("NVML_AGGREGATE_ECC", 1)
        ),
        remap_pending=_bool(remapped[2]) if remapped else None,
        remap_failed=_bool(remapped[3]) if remapped else None,
        mig=_bool(mig[0]) if mig else None,
        mig_pending=_bool(mig[1]) if mig else None,
        mig_instances=instances,
        persistence=_bool(ask("nvmlDeviceGetPersistenceMode", handle)),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        nvlinks=_nvlinks(ask, handle),
        processes=tuple(
            GpuProcess(process.pid, process.usedGpuMemory)
            for process in ask("nvmlDeviceGetComputeRunningProcesses", handle) or ()
        ),
    )


def _plain(value: Any) -> str | None:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _nvlinks(ask: _Nvml, handle: Any) -> int | None:
    states = [
        ask("nvmlDeviceGetNvLinkState", handle, link) for link in range(ask.constant("NVML_NVLINK_MAX_LINKS", 18))
    ]
    known = [state for state in states if state is not None]
    return sum(bool(state) for state in known) if known else None


def _instances(ask: _Nvml, handle: Any) -> tuple[MigInstance, ...]:
    def devices() -> c.Iterator[MigInstance]:
        for number in range(ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            device = ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if device is None:  # a free slot
                continue
            memory = ask("nvmlDeviceGetMemoryInfo", device)
            yield MigInstance(
                ask("nvmlDeviceGetGpuInstanceId", device) or 0,
                ask("nvmlDeviceGetComputeInstanceId", device) or 0,
                ask("nvmlDeviceGetUUID", device),
                getattr(memory, "total", None),
                getattr(memory, "free", None),
            )

    return tuple(devices())
