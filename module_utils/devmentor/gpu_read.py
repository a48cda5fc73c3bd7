"""Reads a host's GPUs: NVML where its binding is there, nvidia-smi else; the bus, the NUMA nodes, the kernel's log.

Every command has a limit of time and its output one of size. Nothing here judges (gpu_health.py) or changes anything.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import re
import shutil
import subprocess
import tempfile
from typing import Any

from .gpu import (
    MAX_XML,
    Gpu,
    GpuFacts,
    GpuFactsError,
    GpuProcess,
    Xid,
    complete,
    parse_capabilities,
    parse_list,
    parse_nvlinks,
    parse_smi,
    parse_xids,
    short_bus_id,
    with_mig_uuids,
)
from .gpu_nvml import NvmlError, read_nvml

TIMEOUT_S = 60  # without persistence mode each call initialises every GPU, a second or more each
LOG_LINES = 20_000
NVIDIA_VENDOR = "0x10de"


def read(root: pathlib.Path = pathlib.Path("/")) -> GpuFacts:
    """All facts of this host. `root` is where /sys and /proc are looked for."""
    facts = _from_driver()
    facts = dataclasses.replace(
        facts,
        driver=facts.driver or module_version(root),
        pci=pci_gpus(root),
        xids=read_xids(),
        gpus=tuple(_placed(gpu, root) for gpu in facts.gpus),
    )
    return facts


def _from_driver() -> GpuFacts:
    try:
        binding: Any = importlib.import_module("pynvml")
    except ImportError:
        return _from_smi()
    try:
        return read_nvml(binding)
    except NvmlError as error:
        return GpuFacts("nvml", error=str(error), library=error.library)


def _from_smi() -> GpuFacts:
    if not shutil.which("nvidia-smi"):
        return GpuFacts(error="nvidia-smi is not installed")
    try:
        facts = parse_smi(run(["nvidia-smi", "-q", "-x"]))
        listed = parse_list(run(["nvidia-smi", "-L"])) if any(gpu.mig_instances for gpu in facts.gpus) else {}
    except GpuFactsError as error:
        return GpuFacts("nvidia-smi", error=str(error))
    extra: dict[str, dict[str, Any]] = {}
    # Each of these may be missing from an older nvidia-smi, and then is not known.
    for field, command, parse in (
        ("compute_capability", ["--query-gpu=uuid,compute_cap", "--format=csv,noheader"], parse_capabilities),
        ("nvlinks", ["nvlink", "--status"], parse_nvlinks),
    ):
        try:
            extra[field] = parse(run(["nvidia-smi", *command]))
        except GpuFactsError:
            extra[field] = {}
    # nvidia-smi is of the library's version, and answered: the two halves of the driver match.
    return complete(dataclasses.replace(with_mig_uuids(facts, listed), library=facts.driver), **extra)


def run(command: list[str]) -> str:
    """What a command prints. Raises GpuFactsError where it fails, hangs or prints without end."""
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise GpuFactsError(f"{' '.join(command)} did not answer in {TIMEOUT_S} s") from error
        except OSError as error:
            raise GpuFactsError(f"{command[0]} cannot be run ({error.strerror})") from error
        out.seek(0)
        text = out.read(MAX_XML + 1).decode("utf-8", "replace")
    if done.returncode:
        said = " ".join(text.split())[:300] or "nothing"
        raise GpuFactsError(f"{' '.join(command)} ended with {done.returncode} and said: {said}")
    return text


def read_xids() -> tuple[Xid, ...] | None:
    """Xid messages since the boot, from the journal or else the kernel's ring; None where neither can be read."""
    for command in (
        ["journalctl", "--dmesg", "--boot", "--no-pager", "--quiet", "--output=cat", f"--lines={LOG_LINES}"],
        ["dmesg", "--notime"],
    ):
        try:
            text = run(command)
        except GpuFactsError:
            continue
        if text.strip():  # a journal without the kernel's lines has not been told
            return parse_xids(text)
    return None


def module_version(root: pathlib.Path) -> str | None:
    """Version of the kernel module that is loaded; None where none is."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text)
    return found.group(1) if found else None


def pci_gpus(root: pathlib.Path) -> tuple[str, ...]:
    """Bus ids of NVIDIA's display controllers (class 03), with or without a driver."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == NVIDIA_VENDOR and kind.startswith("0x03"):
            found.append(device.name)
    return tuple(found)


def _placed(gpu: Gpu, root: pathlib.Path) -> Gpu:
    """With its NUMA node, and the units of the processes that use it."""
    node = None
    if gpu.bus_id:
        try:
            text = (root / f"sys/bus/pci/devices/{short_bus_id(gpu.bus_id)}.0/numa_node").read_text()
            node = int(text) if int(text) >= 0 else None  # -1: the firmware does not say
        except (OSError, ValueError):
            node = None
    processes = tuple(dataclasses.replace(process, unit=_unit(process, root)) for process in gpu.processes)
    return dataclasses.replace(gpu, numa_node=node, processes=processes)


def _unit(process: GpuProcess, root: pathlib.Path) -> str:
    try:
        cgroup = (root / f"proc/{process.pid}/cgroup").read_text()
    except OSError:
        return ""
    found = re.findall(r"/([^/\n]+\.service)(?=/|$)", cgroup, re.MULTILINE)
    return str(found[-1]) if found else ""
