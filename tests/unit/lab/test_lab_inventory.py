import pytest

from lab.errors import InventoryError
from lab.inventory import expand, inventory_file, read_inventory

HOSTS = """
all:
  vars:
    lab_suite: trixie
    ansible_host: "{{ lab_addresses[inventory_hostname] }}"
  hosts:
    web1: {lab_cpus: 1.5}
  children:
    db:
      vars: {lab_memory_mib: 2048}
      hosts:
        db[1:2]:
    old:
      children:
        older:
          vars: {lab_suite: bookworm}
          hosts: {db2: {lab_autostart: false}}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hosts.yml").write_text(HOSTS)
    return tmp_path


def write(folder, path, text):
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def test_hosts_groups_and_variables(folder):
    inventory = read_inventory(folder)
    assert list(inventory.hosts) == ["web1", "db1", "db2"]
    assert inventory.hosts["web1"].cpus == 1.5
    assert inventory.hosts["db1"].memory_mib == 2048
    assert inventory.hosts["db1"].groups == ("db",)
    spare = inventory.hosts["db2"]
    assert (spare.suite, spare.autostart, spare.memory_mib) == ("bookworm", False, 2048)
    assert set(spare.groups) == {"db", "old", "older"}


def test_a_file_and_its_directory_are_the_same_inventory(folder):
    assert inventory_file(folder) == inventory_file(folder / "hosts.yml")
    assert read_inventory(folder).generated == folder / "group_vars/all/lab.generated.yml"


def test_group_vars_beat_inline_and_host_vars_beat_both(folder):
    write(folder, "group_vars/db/main.yml", "lab_memory_mib: 3000\n")
    write(folder, "group_vars/all.yml", "lab_layer: baked\n")
    write(folder, "host_vars/db1.yml", "lab_memory_mib: 4000\n")
    hosts = read_inventory(folder).hosts
    assert hosts["web1"].layer == "baked"
    assert hosts["db1"].memory_mib == 4000
    assert hosts["db2"].memory_mib == 3000


def test_vaults_foreign_tags_and_the_labs_own_file_are_passed_over(folder):
    write(folder, "group_vars/all/vault.yml", "$ANSIBLE_VAULT;1.1;AES256\n0123\n")
    write(folder, "group_vars/all/main.yml", "secret: !vault |\n  abc\nlab_layer: baked\n")
    write(folder, "group_vars/all/lab.generated.yml", "lab_layer: nonsense\n")
    assert read_inventory(folder).hosts["web1"].layer == "baked"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lab_suite: sarge", "use one of: trixie, bookworm"),
        ("lab_layer: half", "use one of: bare, baked"),
        ("lab_memory_mib: lots", "a number of MiB"),
        ("lab_memory_mib: 12", "at least 128"),
        ("lab_cpus: true", "a number of cores"),
        ("lab_autostart: maybe", "true or false"),
        ("lab_memroy_mib: 1024", "did you mean `lab_memory_mib`"),
    ],
)
def test_a_bad_value_names_file_host_and_remedy(folder, line, message):
    write(folder, "host_vars/web1.yml", f"{line}\n")
    with pytest.raises(InventoryError) as error:
        read_inventory(folder)
    assert message in str(error.value)
    assert "web1" in str(error.value)
    assert "hosts.yml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "must hold a mapping"), ("all: [", "is not YAML"), ("all: {}\n", "names no hosts")],
)
def test_a_file_that_is_no_inventory(tmp_path, text, message):
    (tmp_path / "hosts.yml").write_text(text)
    with pytest.raises(InventoryError, match=message):
        read_inventory(tmp_path)


def test_no_inventory_says_what_to_give(tmp_path):
    with pytest.raises(InventoryError, match="--inventory"):
        read_inventory(tmp_path / "nowhere")


def test_host_names_are_checked(tmp_path):
    (tmp_path / "hosts.yml").write_text("all: {hosts: {Bad_Name: }}\n")
    with pytest.raises(InventoryError, match="not a host name"):
        read_inventory(tmp_path)


def test_limit_takes_hosts_and_groups(folder):
    inventory = read_inventory(folder)
    assert [host.name for host in inventory.select("db")] == ["db1", "db2"]
    assert [host.name for host in inventory.select("web1, db2")] == ["web1", "db2"]
    assert len(inventory.select(None)) == 3
    with pytest.raises(InventoryError, match="did you mean `web1`"):
        inventory.select("web11")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("a", ["a"]), ("a[1:3]", ["a1", "a2", "a3"]), ("a[08:10]b", ["a08b", "a09b", "a10b"]), ("a[2:1]", [])],
)
def test_ranges(pattern, names):
    assert expand(pattern) == names
