import pytest

from lab.cgroups import find_hierarchies
from lab.errors import PrerequisiteError

HYBRID = """\
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""


def test_a_hybrid_machine():
    found = find_hierarchies(HYBRID)
    assert [str(path) for path in found.tracking] == ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"]
    assert {name: str(path) for name, path in found.controllers.items()} == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
    }


def test_a_unified_machine():
    found = find_hierarchies("30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    assert [str(path) for path in found.roots] == ["/sys/fs/cgroup"]
    assert not found.controllers


def test_a_machine_without_the_unified_hierarchy_says_how_to_get_it():
    with pytest.raises(PrerequisiteError, match="mount -t cgroup2"):
        find_hierarchies("30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
