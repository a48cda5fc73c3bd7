"""The GPUs of a host as facts: what `nvidia-smi -q -x`, sysfs and the kernel's log say, read by pure functions.

`nvidia-smi -q -x` has NVIDIA's schema nvsmi_device_v11 to v13.dtd. A field that is not there, or says `N/A`, is None
and its name is in `unknown`: who decides by it can tell "no" from "not known".
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import re

# From a program of this host, without a DTD that is fetched and (below) without entities: nothing to expand.
import xml.etree.ElementTree as ElementTree
from typing import Any

MIB = 1024**2
MAX_XML = 16 * MIB  # 120 kB a GPU with its table of clocks, and sixteen of them, many times over
# What nvidia-smi prints where it has no value.
_NO_VALUE = frozenset(
    {"", "N/A", "None", "ERR!", "Unknown Error", "Not Found", "Requested functionality has been deprecated"}
)
_SIZE = re.compile(r"(\d+) MiB\Z")


class GpuFactsError(Exception):
    """Output that cannot be read; the message says whose and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class MigInstance:
    """A part of a GPU that is a device of its own. Memory in bytes; CUDA_VISIBLE_DEVICES takes its `uuid` (MIG-...)."""

    gpu_instance: int
    compute_instance: int
    uuid: str | None = None
    memory_total: int | None = None
    memory_free: int | None = None


@dataclasses.dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory (bytes) of a GPU; `unit` is its systemd unit where that is known."""

    pid: int
    memory: int | None
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU. Memory in bytes, of which `memory_reserved` is the driver's own.

    `ecc_uncorrected`: uncorrected memory errors since the driver was loaded, `ecc_uncorrected_ever` of the GPU's life.
    `remap_pending`, `remap_failed`: rows of memory that wait for a reset to be replaced, or could not be replaced.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    bus_id: str | None = None
    memory_total: int | None = None
    memory_reserved: int | None = None
    memory_free: int | None = None
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    ecc_uncorrected_ever: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    mig: bool | None = None
    mig_pending: bool | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    persistence: bool | None = None
    numa_node: int | None = None
    compute_capability: str | None = None
    nvlinks: int | None = None
    processes: tuple[GpuProcess, ...] = ()

    @property
    def unknown(self) -> list[str]:
        """Names of the fields that could not be read."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is None]


@dataclasses.dataclass(frozen=True)
class Xid:
    """What the driver reported to the kernel's log about a GPU since the boot: code, how often, the last message."""

    bus_id: str
    code: int
    count: int
    last: str


@dataclasses.dataclass(frozen=True)
class GpuFacts:
    """All of a host. `source` is nvml, nvidia-smi or none; `error` is why the driver did not answer.

    `driver` is the version of the kernel module, `library` of the user's half; `cuda` is the newest CUDA that the
    driver runs. `pci` are the GPUs on the bus, whoever drives them; `xids` is None where the log cannot be read.
    """

    source: str = "none"
    error: str = ""
    driver: str | None = None
    library: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    pci: tuple[str, ...] = ()
    xids: tuple[Xid, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """What the module returns: plain data, with the names of what is unknown."""
        plain = dataclasses.asdict(self)
        plain["gpus"] = [
            {**fields, "unknown": gpu.unknown} for fields, gpu in zip(plain["gpus"], self.gpus, strict=True)
        ]
        plain["pci"] = list(self.pci)
        plain["unknown"] = [name for name in ("driver", "library", "cuda", "xids") if getattr(self, name) is None]
        return plain


def parse_smi(text: str) -> GpuFacts:
    """`nvidia-smi -q -x`. Raises GpuFactsError."""
    if len(text) > MAX_XML:
        raise GpuFactsError(f"nvidia-smi -q -x printed {len(text)} characters, more than {MAX_XML} are not read")
    if "<!ENTITY" in text:
        raise GpuFactsError("nvidia-smi -q -x printed a document with entities, which NVIDIA's does not have")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - see the import
    except ElementTree.ParseError as error:
        raise GpuFactsError(f"nvidia-smi -q -x did not print XML ({error})") from error
    if root.tag != "nvidia_smi_log":
        raise GpuFactsError(f"nvidia-smi -q -x printed a <{root.tag}>, not its log")
    return GpuFacts(
        "nvidia-smi",
        driver=_text(root, "driver_version"),
        cuda=_text(root, "cuda_version"),
        gpus=tuple(_gpu(index, element) for index, element in enumerate(root.findall("gpu"))),
    )


def _text(element: ElementTree.Element, path: str) -> str | None:
    value = (element.findtext(path) or "").strip()
    return None if value.strip("[]") in _NO_VALUE else value


def _bytes(element: ElementTree.Element, path: str) -> int | None:
    found = _SIZE.match(_text(element, path) or "")
    return int(found.group(1)) * MIB if found else None


def _number(element: ElementTree.Element, path: str) -> int | None:
    value = _text(element, path)
    return int(value) if value and value.isdigit() else None


def _switch(element: ElementTree.Element, path: str) -> bool | None:
    return {"Enabled": True, "Yes": True, "Disabled": False, "No": False}.get(_text(element, path) or "")


def _uncorrected(counters: ElementTree.Element | None) -> int | None:
    """The sum of a block's uncorrected errors; schemas differ in how finely they name them."""
    if counters is None:
        return None
    # v11 on: sram_uncorrectable, dram_uncorrectable, sram_uncorrectable_parity, ..._secded. Before: double_bit/total.
    found = [_number(counters, child.tag) for child in counters if "_uncorrectable" in child.tag]
    found.append(_number(counters, "double_bit/total"))
    known = [count for count in found if count is not None]
    return sum(known) if known else None


def _gpu(index: int, element: ElementTree.Element) -> Gpu:
    instances = element.findall("mig_devices/mig_device")
    uncorrected = _uncorrected(element.find("ecc_errors/volatile"))
    if uncorrected is None and instances:  # with MIG on some drivers count by instance alone
        parts = [_uncorrected(instance.find("ecc_error_count/volatile_count")) for instance in instances]
        known = [part for part in parts if part is not None]
        uncorrected = sum(known) if len(known) == len(parts) else None
    return Gpu(
        index=index,
        name=_text(element, "product_name"),
        uuid=_text(element, "uuid"),
        bus_id=_text(element, "pci/pci_bus_id") or element.get("id"),
        memory_total=_bytes(element, "fb_memory_usage/total"),
        memory_reserved=_bytes(element, "fb_memory_usage/reserved"),
        memory_free=_bytes(element, "fb_memory_usage/free"),
        ecc=_switch(element, "ecc_mode/current_ecc"),
        ecc_uncorrected=uncorrected,
        ecc_uncorrected_ever=_uncorrected(element.find("ecc_errors/aggregate")),
        remap_pending=_switch(element, "remapped_rows/remapped_row_pending"),
        remap_failed=_switch(element, "remapped_rows/remapped_row_failure"),
        mig=_switch(element, "mig_mode/current_mig"),
        mig_pending=_switch(element, "mig_mode/pending_mig"),
        mig_instances=tuple(_mig(instance) for instance in instances),
        persistence=_switch(element, "persistence_mode"),
        processes=tuple(
            GpuProcess(pid, _bytes(process, "used_memory"))
            for process in element.findall("processes/process_info")
            if (pid := _number(process, "pid")) is not None
        ),
    )


def _mig(element: ElementTree.Element) -> MigInstance:
    return MigInstance(
        _number(element, "gpu_instance_id") or 0,
        _number(element, "compute_instance_id") or 0,
        _text(element, "uuid"),
        _bytes(element, "fb_memory_usage/total"),
        _bytes(element, "fb_memory_usage/free"),
    )


_LISTED_GPU = re.compile(r"GPU \d+: .*\(UUID: (GPU-[0-9a-f-]+)\)")
_LISTED_MIG = re.compile(r"\s+MIG .*Device\s+(\d+): \(UUID: (MIG-[^)]+)\)")


def parse_list(text: str) -> dict[str, list[str]]:
    """`nvidia-smi -L` -> {UUID of a GPU: UUIDs of its MIG devices, in order}: the XML has those only sometimes."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if gpu := _LISTED_GPU.match(line):
            current = found.setdefault(gpu.group(1), [])
        elif mig := _LISTED_MIG.match(line):
            current.append(mig.group(2))
    return found


def parse_capabilities(text: str) -> dict[str, str]:
    """`nvidia-smi --query-gpu=uuid,compute_cap --format=csv,noheader` -> {UUID: "9.0"}."""
    return dict(re.findall(r"^(GPU-[0-9a-f-]+),\s*(\d+\.\d+)\s*$", text, re.MULTILINE))


def parse_nvlinks(text: str) -> dict[str, int]:
    """`nvidia-smi nvlink --status` -> {UUID of a GPU: links that are up}."""
    found: dict[str, int] = {}
    uuid = ""
    for line in text.splitlines():
        if gpu := _LISTED_GPU.match(line):
            uuid = gpu.group(1)
            found[uuid] = 0
        elif uuid and re.match(r"\s+Link \d+: \d+(\.\d+)? GB/s", line):
            found[uuid] += 1
    return found


_XID = re.compile(r"NVRM: Xid \((?:PCI:)?(?P<bus>[0-9a-fA-F:.]+)\): (?P<code>\d+)(?:, ?(?P<text>.*))?")


def parse_xids(log: str) -> tuple[Xid, ...]:
    """The kernel's log -> what the driver reported, by GPU and code. Bus ids come as `short_bus_id` has them."""
    found: dict[tuple[str, int], tuple[int, str]] = {}
    for match in _XID.finditer(log):
        key = short_bus_id(match["bus"]), int(match["code"])
        found[key] = found.get(key, (0, ""))[0] + 1, (match["text"] or "").strip()[:200]
    return tuple(Xid(bus, code, count, last) for (bus, code), (count, last) in sorted(found.items()))


def short_bus_id(bus_id: str) -> str:
    """Any of NVML's `00000000:3B:00.0`, sysfs' `0000:3b:00.0` and the log's `0000:3b:00` in the last one's form."""
    parts = bus_id.lower().split(".")[0].split(":")
    domain = int(parts[0], 16) if len(parts) == 3 else 0
    return f"{domain:04x}:{parts[-2]}:{parts[-1]}"


def same_gpu(one: str, other: str) -> bool:
    """Whether two bus ids, each in whatever form, name one device."""
    return short_bus_id(one) == short_bus_id(other)


def complete(facts: GpuFacts, **by_gpu: c.Mapping[str, Any]) -> GpuFacts:
    """Facts with fields added that come from elsewhere: field -> {UUID: value}. What is known already stays."""
    gpus = []
    for gpu in facts.gpus:
        fields = {name: values[gpu.uuid] for name, values in by_gpu.items() if gpu.uuid and gpu.uuid in values}
        gpus.append(dataclasses.replace(gpu, **{k: v for k, v in fields.items() if getattr(gpu, k) in (None, ())}))
    return dataclasses.replace(facts, gpus=tuple(gpus))


def with_mig_uuids(facts: GpuFacts, listed: c.Mapping[str, c.Sequence[str]]) -> GpuFacts:
    """Facts whose MIG instances have the UUIDs that `nvidia-smi -L` lists, where their numbers agree."""
    gpus = []
    for gpu in facts.gpus:
        uuids = listed.get(gpu.uuid or "", ())
        instances = gpu.mig_instances
        if len(uuids) == len(instances):
            instances = tuple(
                dataclasses.replace(instance, uuid=instance.uuid or uuid)
                for instance, uuid in zip(instances, uuids, strict=True)
            )
        gpus.append(dataclasses.replace(gpu, mig_instances=instances))
    return dataclasses.replace(facts, gpus=tuple(gpus))
