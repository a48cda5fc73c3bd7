"""Writes the CPU and memory use of the slices devmentor-*.slice, and their limits, for the node exporter.

Beside it, whenever one has changed, which version of each component is here (devmentor/versions.py, from roles/base).

SCALING.md's 70 % and 75 % are shares of a component's own limit, which no exporter of Debian reports: the limits are
systemd's, the use is in the control group. Memory is the working set (what cannot be given back at once: memory.current
less inactive_file), because the page cache fills any limit sooner or later. Where the kernel gives no memory controller
(a container host), it is the anonymous memory of the slice's processes.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

CGROUPS = pathlib.Path("/sys/fs/cgroup")
PROC = pathlib.Path("/proc")
SLICE = re.compile(r"^devmentor-([a-z0-9_]+)\.slice$")
UNITS = {"us": 1, "ms": 1000, "s": 1000000, "min": 60000000}
METRICS = {
    "devmentor_slice_cpu_seconds_total": ("counter", "CPU time used by the component's slice."),
    "devmentor_slice_cpu_limit_cores": ("gauge", "CPUQuota of the component's slice."),
    "devmentor_slice_memory_working_set_bytes": ("gauge", "Memory of the component's slice that cannot be reclaimed."),
    "devmentor_slice_memory_limit_bytes": ("gauge", "MemoryMax of the component's slice."),
}


def blocks(show: str) -> list[dict[str, str]]:
    """The units of a `systemctl show` of several, each as property and value."""
    return [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in show.split("\n\n")
        if block.strip()
    ]


def duration(text: str) -> float | None:
    """Seconds of systemd's `1min 30s 500ms`; None for infinity."""
    if text in ("", "infinity"):
        return None
    total = 0.0
    for value, unit in re.findall(r"([\d.]+)(us|ms|s|min)\b", text):
        total += float(value) * UNITS[unit]
    return total / 1e6


def number(text: str) -> float | None:
    """A byte count; None for infinity and what systemd does not know."""
    return float(text) if text.isdigit() else None


def field(text: str, name: str) -> int | None:
    """The value of `name` in a flat keyed control group file."""
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def read(path: pathlib.Path) -> str:
    """A file's text, empty where it is gone: control groups and processes end while they are read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def anonymous_bytes(group: pathlib.Path, proc: pathlib.Path) -> int:
    """Anonymous memory of every process below a control group."""
    total = 0
    for listing in group.rglob("cgroup.procs"):
        for pid in read(listing).split():
            found = re.search(r"^RssAnon:\s+(\d+) kB$", read(proc / pid / "status"), re.MULTILINE)
            total += int(found.group(1)) * 1024 if found else 0
    return total


def measure(
    unit: dict[str, str], cgroups: pathlib.Path = CGROUPS, proc: pathlib.Path = PROC
) -> dict[str, float | None]:
    """The metrics of one slice by name; None for what is not limited or not known."""
    group = cgroups / unit.get("ControlGroup", "").lstrip("/")
    usage = field(read(group / "cpu.stat"), "usage_usec")
    current = number(read(group / "memory.current").strip())
    if current is None:
        memory: float = anonymous_bytes(group, proc)
    else:
        memory = max(0, current - (field(read(group / "memory.stat"), "inactive_file") or 0))
    return {
        "devmentor_slice_cpu_seconds_total": None if usage is None else usage / 1e6,
        "devmentor_slice_cpu_limit_cores": duration(unit.get("CPUQuotaPerSecUSec", "")),
        "devmentor_slice_memory_working_set_bytes": memory,
        "devmentor_slice_memory_limit_bytes": number(unit.get("MemoryMax", "")),
    }


def render(slices: dict[str, dict[str, float | None]]) -> str:
    """The text exposition of every slice's metrics."""
    lines = []
    for metric, (kind, text) in METRICS.items():
        rows = [
            f'{metric}{{slice="{name}"}} {values[metric]:.17g}'
            for name, values in sorted(slices.items())
            if values[metric] is not None
        ]
        if rows:
            lines += [f"# HELP {metric} {text}", f"# TYPE {metric} {kind}", *rows]
    return "".join(f"{line}\n" for line in lines)


def version_metrics(target: pathlib.Path, releases: pathlib.Path) -> None:
    """Keeps `target` at the versions of this host; not where roles/base has not brought what reads them."""
    try:
        from devmentor import versions
    except ImportError:
        return
    versions.refresh(target, releases)


def main(target: str, releases: str) -> None:
    """Measures every slice and replaces the file `target`; `releases` is devmentor_release_dir."""
    properties = "Id,ActiveState,ControlGroup,CPUQuotaPerSecUSec,MemoryMax"
    command = ["systemctl", "show", "--property", properties, "devmentor-*.slice"]
    show = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    slices = {}
    for unit in blocks(show):
        name = SLICE.match(unit.get("Id", ""))
        if name and unit.get("ControlGroup"):
            slices[name.group(1)] = measure(unit)
    path = pathlib.Path(target)
    staged = path.with_suffix(".staged")
    staged.write_text(render(slices))
    staged.chmod(0o644)
    staged.replace(path)
    version_metrics(path.with_name("versions.prom"), pathlib.Path(releases))


if __name__ == "__main__":
    main(*sys.argv[1:])
