"""The resource use of the component slices, from what systemd and the kernel say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "roles/exporters/files/slice_metrics.py"
SHOW = """\
Id=devmentor-qwen.slice
ControlGroup=/devmentor.slice/devmentor-qwen.slice
CPUQuotaPerSecUSec=4s
MemoryMax=17179869184

Id=devmentor-exporters.slice
ControlGroup=/devmentor.slice/devmentor-exporters.slice
CPUQuotaPerSecUSec=infinity
MemoryMax=infinity
"""


@pytest.fixture(scope="module")
def slices() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slice_metrics", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cgroup(root: Path, name: str, files: dict[str, str]) -> Path:
    folder = root / "devmentor.slice" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def test_blocks_are_units(slices: ModuleType) -> None:
    assert [unit["Id"] for unit in slices.blocks(SHOW)] == ["devmentor-qwen.slice", "devmentor-exporters.slice"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4s", 4), ("400ms", 0.4), ("1.500s", 1.5), ("1min 30s", 90), ("50us", 5e-5), ("infinity", None), ("", None)],
)
def test_duration(slices: ModuleType, text: str, seconds: float | None) -> None:
    assert slices.duration(text) == pytest.approx(seconds) if seconds is not None else slices.duration(text) is None


def test_memory_is_what_cannot_be_reclaimed(slices: ModuleType, tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "memory.current": "1000\n",
        "memory.stat": "anon 300\ninactive_file 600\n",
    }
    cgroup(tmp_path, "devmentor-qwen.slice", files)
    values = slices.measure(slices.blocks(SHOW)[0], tmp_path, tmp_path / "proc")
    assert values == {
        "devmentor_slice_cpu_seconds_total": 2.5,
        "devmentor_slice_cpu_limit_cores": 4,
        "devmentor_slice_memory_working_set_bytes": 400,
        "devmentor_slice_memory_limit_bytes": 17179869184,
    }


def test_without_a_memory_controller_it_is_the_processes_own(slices: ModuleType, tmp_path: Path) -> None:
    cgroup(tmp_path, "devmentor-qwen.slice", {"cpu.stat": "usage_usec 1\n"})
    cgroup(tmp_path, "devmentor-qwen.slice/qwen.service", {"cgroup.procs": "11\n12\n"})
    cgroup(tmp_path, "devmentor-qwen.slice/llamacpp.service", {"cgroup.procs": "13\n"})
    for pid, kib in (("11", 100), ("13", 20)):  # 12 has ended
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "status").write_text(f"VmRSS:\t 999 kB\nRssAnon:\t  {kib} kB\nRssFile:\t 7 kB\n")
    values = slices.measure(slices.blocks(SHOW)[0], tmp_path, tmp_path / "proc")
    assert values["devmentor_slice_memory_working_set_bytes"] == 120 * 1024


def test_a_slice_without_limits_has_no_limit_metrics(slices: ModuleType, tmp_path: Path) -> None:
    cgroup(tmp_path, "devmentor-exporters.slice", {"cpu.stat": "usage_usec 1000000\n", "memory.current": "5\n"})
    measured = slices.measure(slices.blocks(SHOW)[1], tmp_path, tmp_path / "proc")
    text = slices.render({"exporters": measured})
    assert 'devmentor_slice_cpu_seconds_total{slice="exporters"} 1\n' in text
    assert "limit" not in text


def test_a_slice_that_is_gone_has_no_cpu(slices: ModuleType, tmp_path: Path) -> None:
    values = slices.measure(slices.blocks(SHOW)[0], tmp_path, tmp_path / "proc")
    assert values["devmentor_slice_cpu_seconds_total"] is None


def test_the_file_is_replaced_whole(slices: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices.subprocess, "run", lambda *_, **__: type("Run", (), {"stdout": SHOW})())
    monkeypatch.setattr(slices, "measure", lambda unit: dict.fromkeys(slices.METRICS, 1.0))
    target = tmp_path / "slices.prom"
    slices.main(str(target), str(tmp_path / "opt"))
    assert target.read_text().count('slice="qwen"') == 4
    assert [path.name for path in tmp_path.iterdir()] == ["slices.prom"]
