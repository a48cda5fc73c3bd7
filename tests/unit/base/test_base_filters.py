"""What a host gets from its groups."""

from __future__ import annotations

import pytest

from filter_plugins.base import (
    host_components,
    host_packages,
    host_slices,
    hosts_lines,
    operator_accounts,
    slice_files,
)

TABLE = {
    "qwen": {"cpu_min": 2, "cpu_max": 4, "memory_min_gib": 8, "memory_max_gib": 16},
    "postgres": {"cpu_min": 4, "cpu_max": 8, "memory_min_gib": 16, "memory_max_gib": 32},
}
GIB = 1024**3


def test_a_standby_host_is_prepared_as_what_it_stands_by_for():
    assert host_components(["qwen_standby", "gateway"]) == ["gateway", "qwen"]
    assert host_packages({"all": ["acl"], "qwen": ["libgomp1"]}, ["qwen_standby"]) == ["acl", "libgomp1"]


def test_packages_are_the_union_without_doubles():
    lists = {"all": ["acl"], "postgres": ["postgresql-17", "python3-psycopg2"], "pgbouncer": ["python3-psycopg2"]}
    assert host_packages(lists, ["postgres", "pgbouncer"]) == ["acl", "postgresql-17", "python3-psycopg2"]
    assert host_packages(lists, ["spare"]) == ["acl"]


def test_slices_carry_the_table_at_scale_one():
    _, postgres, qwen = host_slices(TABLE, ["qwen", "postgres", "cache"], 1.0)
    assert postgres == {
        "name": "devmentor-postgres",
        "cpu_weight": 400,
        "cpu_quota": 800,
        "memory_low": 16 * GIB,
        "memory_max": 32 * GIB,
    }
    assert qwen["memory_max"] == 16 * GIB


def test_the_parent_protects_the_sum_and_limits_nothing():
    parent = host_slices(TABLE, ["qwen", "postgres"], 1.0)[0]
    assert parent == {"name": "devmentor", "cpu_weight": 600, "memory_low": 24 * GIB}


def test_the_scale_changes_limits_and_not_the_relation_between_components():
    full, tenth = host_slices(TABLE, ["qwen"], 1.0)[1], host_slices(TABLE, ["qwen"], 0.1)[1]
    assert tenth["cpu_weight"] == full["cpu_weight"]
    assert tenth["cpu_quota"] == 40
    assert tenth["memory_max"] == round(1.6 * GIB)


def test_a_host_without_a_limited_component_has_no_slices():
    assert host_slices(TABLE, ["cache"], 1.0) == []


@pytest.mark.parametrize("scale", [0, -1])
def test_a_scale_that_would_give_nothing_is_refused(scale):
    with pytest.raises(ValueError, match="devmentor_resource_scale"):
        host_slices(TABLE, ["qwen"], scale)


def test_weights_stay_in_systemds_range():
    many = {name: {**TABLE["postgres"], "cpu_min": 64} for name in ["a", "b"]}
    assert [part["cpu_weight"] for part in host_slices(many, ["a", "b"], 1.0)] == [10000, 6400, 6400]


def test_slice_files_are_what_systemd_reads():
    files = slice_files(host_slices(TABLE, ["qwen"], 0.1))
    assert [item["path"] for item in files] == [
        "/etc/systemd/system/devmentor.slice",
        "/etc/systemd/system/devmentor-qwen.slice",
    ]
    assert files[0]["content"].splitlines()[1:] == ["[Slice]", "CPUWeight=200", f"MemoryLow={round(0.8 * GIB)}"]
    assert "CPUQuota=40%\nMemoryMax=1717986918\n" in files[1]["content"]


def test_hosts_lines_name_hosts_by_full_and_short_name_and_leave_names_to_dns():
    addresses = {"pg2.example.com": "10.0.0.2", "pg1": "10.0.0.1", "v6": "fd00::1", "elsewhere": "db.example.com"}
    text = hosts_lines(addresses)
    assert text.splitlines() == ["10.0.0.1 pg1", "10.0.0.2 pg2.example.com pg2", "fd00::1 v6"]


def test_operators_come_with_home_keys_and_sudo():
    accounts = operator_accounts([{"name": "ada", "authorized_keys": ["ssh-ed25519 AAAA ada ", "ssh-ed25519 BBBB"]}])
    assert accounts["users"][0]["groups"] == ["devmentor-operators"]
    modes = {item["path"]: item["mode"] for item in accounts["directories"]}
    assert modes == {"/home/ada": "0750", "/home/ada/.ssh": "0700"}
    keys, sudoers = accounts["files"]
    assert keys["content"] == "ssh-ed25519 AAAA ada\nssh-ed25519 BBBB\n"
    assert keys["mode"] == "0600"
    assert sudoers["validate"] == "visudo -cf %s"


def test_no_operators_no_sudo_rule():
    assert operator_accounts([]) == {"users": [], "directories": [], "files": []}
