"""What is read of a host's GPUs, from nvidia-smi's XML, its lists, the bus and the kernel's log."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from module_utils.devmentor import gpu_read
from module_utils.devmentor.gpu import (
    MAX_XML,
    MIB,
    GpuFactsError,
    complete,
    parse_capabilities,
    parse_list,
    parse_nvlinks,
    parse_smi,
    parse_xids,
    same_gpu,
    with_mig_uuids,
)
from tests.unit.gpu.hosts import A100_40_MIG, A100_MIG, H100, H200, L40S, sample, smi

LISTED = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-513536b6-7d19-9063-b049-1e69664bb298)
  MIG 2g.20gb     Device  0: (UUID: MIG-41b3359c-e721-56e5-8009-12e5797ed514)
  MIG 2g.20gb     Device  1: (UUID: MIG-65b79fff-6d3c-5490-a288-b31ec705f310)
  MIG 2g.20gb     Device  2: (UUID: MIG-c6e2bae8-46d4-5a7e-9a68-c6cf1f680ba0)
  MIG 2g.20gb     Device  3: (UUID: MIG-00000000-0000-5000-8000-000000000003)
GPU 1: NVIDIA H200 (UUID: GPU-00000001-0000-4000-8000-00000000b200)
"""


def test_a_gpu_with_mig_has_its_instances() -> None:
    facts = parse_smi(sample(A100_MIG))
    assert (facts.source, facts.driver, facts.cuda) == ("nvidia-smi", "535.54.03", "12.2")
    (gpu,) = facts.gpus
    assert gpu.name == "NVIDIA A100-SXM4-80GB"
    assert (gpu.memory_total, gpu.memory_reserved, gpu.memory_free) == (81920 * MIB, 869 * MIB, 80999 * MIB)
    assert (gpu.mig, gpu.mig_pending, gpu.persistence, gpu.ecc) == (True, True, False, True)
    assert [instance.gpu_instance for instance in gpu.mig_instances] == [3, 4, 5, 6]
    assert {instance.memory_total for instance in gpu.mig_instances} == {19968 * MIB}
    listed = with_mig_uuids(facts, parse_list(LISTED)).gpus[0].mig_instances
    assert [instance.uuid for instance in listed][1] == "MIG-65b79fff-6d3c-5490-a288-b31ec705f310"
    fewer = with_mig_uuids(facts, {str(gpu.uuid): ["MIG-one"]}).gpus[0].mig_instances
    assert [instance.uuid for instance in fewer] == [None] * 4, "numbers that do not agree are not guessed at"


def test_where_volatile_counters_say_nothing_the_instances_do() -> None:
    (gpu,) = parse_smi(sample(A100_40_MIG)).gpus
    assert (gpu.ecc_uncorrected, gpu.ecc_uncorrected_ever) == (0, 0)
    hurt = sample(A100_40_MIG).replace(
        "<sram_uncorrectable>0</sram_uncorrectable>\n          </volatile",
        "<sram_uncorrectable>2</sram_uncorrectable>\n          </volatile",
    )
    assert parse_smi(hurt).gpus[0].ecc_uncorrected == 4
    silent = sample(A100_40_MIG).replace("<sram_uncorrectable>0<", "<sram_uncorrectable>N/A<", 1)
    assert parse_smi(silent).gpus[0].ecc_uncorrected is None, "one instance that says nothing may hide the error"


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("name", [H100, H200, L40S])
def test_hosts_of_several_gpus(name: str, count: int) -> None:
    facts = parse_smi(smi(*[name] * count))
    assert [gpu.index for gpu in facts.gpus] == list(range(count))
    assert len({gpu.uuid for gpu in facts.gpus}) == len({gpu.bus_id for gpu in facts.gpus}) == count
    assert {gpu.ecc_uncorrected for gpu in facts.gpus} == {0}


def test_mixed_and_none() -> None:
    assert [gpu.name for gpu in parse_smi(smi(H100, L40S)).gpus] == ["NVIDIA H100 80GB HBM3", "NVIDIA L40S"]
    assert parse_smi(smi()).gpus == ()


def test_errors_are_summed_whatever_the_schema_calls_them() -> None:
    hurt = smi(H100).replace("<sram_uncorrectable_parity>0", "<sram_uncorrectable_parity>1", 1)
    hurt = hurt.replace("<dram_uncorrectable>0", "<dram_uncorrectable>2", 1)
    assert parse_smi(hurt).gpus[0].ecc_uncorrected == 3
    old = "<ecc_errors><volatile><double_bit><total>5</total></double_bit></volatile></ecc_errors>"
    start, end = hurt.index("<ecc_errors>"), hurt.index("</ecc_errors>") + len("</ecc_errors>")
    assert parse_smi(hurt[:start] + old + hurt[end:]).gpus[0].ecc_uncorrected == 5


@pytest.mark.parametrize(
    "value", ["N/A", "[N/A]", "Unknown Error", "ERR!", "", "Requested functionality has been deprecated"]
)
def test_what_has_no_value_is_unknown_and_named(value: str) -> None:
    text = smi(H100).replace("<current_ecc>Enabled", f"<current_ecc>{value}")
    text = text.replace("<total>81559 MiB", f"<total>{value}")
    (gpu,) = parse_smi(text).gpus
    assert (gpu.ecc, gpu.memory_total) == (None, None)
    assert {"ecc", "memory_total", "numa_node", "compute_capability", "nvlinks"} <= set(gpu.unknown)
    assert "ecc" in parse_smi(text).as_dict()["gpus"][0]["unknown"]
    assert "name" not in gpu.unknown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NVIDIA-SMI has failed", "did not print XML"),
        ("<other/>", "<other>"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><nvidia_smi_log>&a;</nvidia_smi_log>', "entities"),
        (" " * (MAX_XML + 1), "more than"),
    ],
)
def test_what_is_not_nvidias_log_is_refused(text: str, said: str) -> None:
    with pytest.raises(GpuFactsError, match=said):
        parse_smi(text)


@given(st.text())
def test_no_output_crashes_the_parsers(text: str) -> None:
    for parse in (parse_list, parse_capabilities, parse_nvlinks, parse_xids):
        parse(text)
    try:
        parse_smi(text)
    except GpuFactsError:
        return
    raise AssertionError("text is no log")


def test_what_other_commands_know_is_added() -> None:
    facts = parse_smi(smi(H100, H100))
    first, second = (str(gpu.uuid) for gpu in facts.gpus)
    capabilities = parse_capabilities(f"{first}, 9.0\n{second}, [N/A]\n")
    links = parse_nvlinks(
        f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {first})\n\t Link 0: 26.562 GB/s\n\t Link 1: 26.562 GB/s\n"
        f"GPU 1: NVIDIA H100 80GB HBM3 (UUID: {second})\n\t Link 0: <inactive>\n"
    )
    known = complete(facts, compute_capability=capabilities, nvlinks=links)
    assert [gpu.compute_capability for gpu in known.gpus] == ["9.0", None]
    assert [gpu.nvlinks for gpu in known.gpus] == [2, 0]
    assert complete(known, nvlinks={first: 9}).gpus[0].nvlinks == 2, "what is known stays"


def test_xids_are_counted_by_gpu_and_code() -> None:
    log = (
        "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
        "unrelated line\n"
        "[ 12.0] NVRM: Xid (PCI:0000:3B:00): 79, again\n"
        "NVRM: Xid (PCI:0001:41:00): 31, pid=1234, name=python, MMU Fault\n"
        "NVRM: Xid (0000:41:00): 63\n"
    )
    found = {(xid.bus_id, xid.code): (xid.count, xid.last) for xid in parse_xids(log)}
    assert found[("0000:3b:00", 79)] == (2, "again")
    assert found[("0001:41:00", 31)][0] == 1
    assert found[("0000:41:00", 63)] == (1, "")


def test_the_ids_of_one_gpu_agree_in_every_form() -> None:
    assert same_gpu("00000000:3B:00.0", "0000:3b:00")
    assert same_gpu("0000:3b:00.0", "3b:00.0")
    assert not same_gpu("00000001:3B:00.0", "0000:3b:00.0")


# -- reading --


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """/proc and /sys of a host with two GPUs, the second without a driver, and a network card."""
    for bus, vendor, kind, node in (
        ("0000:10:00.0", "0x10de", "0x030200", "1"),
        ("0000:41:00.0", "0x10de", "0x030200", "-1"),
        ("0000:42:00.0", "0x15b3", "0x020000", "0"),
        ("0000:43:00.0", "0x10de", "0x068000", "0"),
    ):
        device = tmp_path / "sys/bus/pci/devices" / bus
        device.mkdir(parents=True)
        for name, text in (("vendor", vendor), ("class", kind), ("numa_node", node)):
            (device / name).write_text(text + "\n")
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@host)\n"
        "GCC version: 12\n"
    )
    (tmp_path / "proc/4711").mkdir()
    (tmp_path / "proc/4711/cgroup").write_text("0::/devmentor.slice/devmentor-vllm.slice/vllm@chat.service\n")
    return tmp_path


SMI = """#!/bin/sh
case "$*" in
"-q -x") cat "$SMI_XML" ;;
"-L") cat "$SMI_LIST" ;;
*compute_cap*) echo "GPU-00000000-0000-4000-8000-00000000b100, 9.0" ;;
*) echo "not supported"; exit 3 ;;
esac
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("SMI_XML", str(tmp_path / "smi.xml"))
    monkeypatch.setenv("SMI_LIST", str(tmp_path / "smi.list"))
    command(folder, "journalctl", "#!/bin/sh\necho 'NVRM: Xid (PCI:0000:10:00): 48, DBE'\n")
    return folder


def command(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_host_is_read(machine: Path, commands: Path, tmp_path: Path) -> None:
    command(commands, "nvidia-smi", SMI)
    process = "<process_info><pid>4711</pid><used_memory>70000 MiB</used_memory></process_info>"
    (tmp_path / "smi.xml").write_text(smi(H100).replace("<processes>", f"<processes>{process}"))
    facts = gpu_read.read(machine)
    assert (facts.source, facts.error, facts.driver, facts.library) == ("nvidia-smi", "", "580.95.05", "580.95.05")
    assert facts.pci == ("0000:10:00.0", "0000:41:00.0"), "an NVSwitch is no GPU"
    (gpu,) = facts.gpus
    assert (gpu.numa_node, gpu.compute_capability, gpu.nvlinks) == (1, "9.0", None)
    assert (gpu.processes[0].unit, gpu.processes[0].memory) == ("vllm@chat.service", 70000 * MIB)
    assert facts.xids
    assert facts.xids[0].code == 48


def test_a_node_that_the_firmware_does_not_name_is_unknown(machine: Path, commands: Path, tmp_path: Path) -> None:
    command(commands, "nvidia-smi", SMI)
    (machine / "sys/bus/pci/devices/0000:10:00.0/numa_node").write_text("-1\n")
    (tmp_path / "smi.xml").write_text(smi(H100))
    assert gpu_read.read(machine).gpus[0].numa_node is None


def test_mig_uuids_come_from_the_list(machine: Path, commands: Path, tmp_path: Path) -> None:
    command(commands, "nvidia-smi", SMI)
    (tmp_path / "smi.xml").write_text(sample(A100_MIG))
    (tmp_path / "smi.list").write_text(LISTED)
    assert all(instance.uuid for instance in gpu_read.read(machine).gpus[0].mig_instances)


def test_a_driver_that_does_not_match_says_why(machine: Path, commands: Path) -> None:
    said = "Failed to initialize NVML: Driver/library version mismatch"
    command(commands, "nvidia-smi", f"#!/bin/sh\necho '{said}'\nexit 18\n")
    facts = gpu_read.read(machine)
    assert "mismatch" in facts.error
    assert (facts.gpus, facts.driver, facts.library) == ((), "580.95.05", None)


def test_a_host_without_any_of_it(tmp_path: Path, commands: Path) -> None:
    (commands / "journalctl").unlink()
    command(commands, "journalctl", "#!/bin/sh\nexit 1\n")
    command(commands, "dmesg", "#!/bin/sh\nexit 1\n")
    facts = gpu_read.read(tmp_path)
    assert (facts.source, facts.error, facts.gpus, facts.pci) == ("none", "nvidia-smi is not installed", (), ())
    assert facts.as_dict()["unknown"] == ["driver", "library", "cuda", "xids"]


def test_without_a_journal_of_the_kernel_its_ring_is_read(commands: Path) -> None:
    command(commands, "journalctl", "#!/bin/sh\nexit 0\n")
    command(commands, "dmesg", "#!/bin/sh\necho 'NVRM: Xid (PCI:0000:41:00): 79, gone'\n")
    found = gpu_read.read_xids()
    assert found
    assert found[0].code == 79


def test_a_command_that_hangs_is_left(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_read, "TIMEOUT_S", 0.2)
    command(commands, "nvidia-smi", "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(GpuFactsError, match=r"did not answer in 0\.2 s"):
        gpu_read.run(["nvidia-smi"])


def test_the_module_runs_where_there_is_nothing(tmp_path: Path) -> None:
    """As Ansible runs it: the facts are data, whatever this machine has. The lab's inventory may have a vault."""
    root = Path(__file__).resolve().parents[3]
    options = ["-c", "local", "--check", "-o"]
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "adhoc", "-i", "localhost,", "localhost", "-m", "gpu_facts", *options],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert '"changed": false' in done.stdout
    assert '"unknown"' in done.stdout


def test_facts_are_plain_data() -> None:
    plain = parse_smi(sample(A100_MIG)).as_dict()
    assert isinstance(plain["gpus"][0]["mig_instances"][0], dict)
    names = {field.name for field in dataclasses.fields(parse_smi(sample(A100_MIG)).gpus[0])}
    assert set(plain["gpus"][0]) == names | {"unknown"}
