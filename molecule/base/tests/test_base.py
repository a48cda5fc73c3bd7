"""What every host has before a component comes, and that a container keeps what its machine decides."""

import json

import pytest

testinfra_hosts = ["gateway"]


@pytest.fixture(scope="module")
def variables(host):
    return host.ansible.get_variables()


def test_packages_of_all_groups_are_there_and_none_runs_by_itself(host):
    for name in ("acl", "chrony", "haproxy", "keepalived", "nftables", "python3-cryptography"):
        assert host.package(name).is_installed, name
    # No cluster was made by the package.
    assert host.run("ls /etc/postgresql/*").rc != 0


def test_an_upgrade_of_the_system_passes_the_tiers_over(host):
    held = host.run("apt-mark showhold").stdout.split()
    assert {"haproxy", "keepalived", "prometheus-node-exporter"} <= set(held)
    assert "chrony" not in held
    said = json.loads(host.run("/etc/ansible/facts.d/devmentor.fact").stdout)
    assert sorted(said["held"]) == sorted(held)
    assert said["versions"]["haproxy"] == host.package("haproxy").version


def test_every_host_knows_every_host_by_name(host, variables):
    for name in variables["groups"]["gateway"]:
        assert host.run(f"getent hosts {name}").stdout.split()[0] != "127.0.1.1"
    own = host.run(f"getent hosts {variables['inventory_hostname']}").stdout.split()[0]
    assert own in host.run("hostname --all-ip-addresses").stdout.split()


def test_network_settings_act_and_those_of_the_shared_kernel_are_left_alone(host):
    assert host.sysctl("net.core.somaxconn") == 4096
    assert host.sysctl("net.ipv4.tcp_fin_timeout") == 30
    written = host.file("/etc/sysctl.d/90-devmentor.conf").content_string
    assert "vm." not in written
    assert "kernel." not in written


def test_the_clock_is_not_touched_in_a_container(host):
    assert not host.service("chrony").is_running


def test_logins_leave_no_core_files_and_are_possible(host):
    assert host.run("su --login --command 'ulimit -H -c' ada --shell /bin/bash").stdout.strip() == "0"


def test_an_operator_may_log_in_and_become_root(host):
    keys = host.file("/home/ada/.ssh/authorized_keys")
    assert keys.mode == 0o600
    assert keys.user == "ada"
    assert host.run("su --login --command 'sudo --non-interactive id --user' ada").stdout.strip() == "0"


def test_the_journal_is_kept_and_bounded(host):
    assert "SystemMaxUse=1G" in host.file("/etc/systemd/journald.conf.d/90-devmentor.conf").content_string
    assert host.file("/var/log/journal").is_directory
    assert host.run("journalctl --sync --no-pager --lines 1").rc == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen", {"CPUWeight": "200", "CPUQuotaPerSecUSec": "400ms", "MemoryMax": "1717986918"}),
        ("postgres", {"CPUWeight": "400", "CPUQuotaPerSecUSec": "800ms", "MemoryLow": "1717986918"}),
    ],
)
def test_slices_carry_the_table_times_the_scale(host, name, expected):
    shown = host.check_output(f"systemctl show devmentor-{name}.slice").splitlines()
    assert {f"{key}={value}" for key, value in expected.items()} <= set(shown)


def test_the_parent_slice_protects_the_sum(host):
    parts = host.run("systemctl show --property MemoryLow --value 'devmentor-*.slice'").stdout.split()
    parent = host.run("systemctl show --property MemoryLow --value devmentor.slice").stdout.strip()
    total = sum(int(part) for part in parts if part.isdigit() and int(part) < 2**60)
    assert int(parent) == total > 0


def test_a_service_in_the_slice_is_bound_by_it(host):
    command = "systemd-run --quiet --pipe --wait --slice devmentor-qwen.slice cat /proc/self/cgroup"
    assert "devmentor.slice/devmentor-qwen.slice" in host.run(command).stdout


def test_nothing_failed(host):
    assert host.check_output("systemctl --failed --no-legend --plain") == ""
