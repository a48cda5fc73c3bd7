"""What the guest is started with."""

import ast
import lzma

import pytest

from lab.errors import LabError
from tests.vm.image import Image, modules
from tests.vm.initramfs import INIT, code, initramfs, platform_settings


def kernel(tmp_path, **content):
    """A kernel's folder of modules; names that end in _xz are packed."""
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-ring.ko\n")
    for name, depends in content.items():
        folder = tmp_path / "kernel" / name[:3]
        folder.mkdir(parents=True, exist_ok=True)
        data = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0intree=Y\0"
        packed = name.endswith("_xz")
        path = folder / (name.removesuffix("_xz").replace("_", "-") + (".ko.xz" if packed else ".ko"))
        path.write_bytes(lzma.compress(data) if packed else data)
    return tmp_path


def test_modules_come_after_what_they_need(tmp_path):
    folder = kernel(tmp_path, virtio_blk_xz="virtio-ring,middle", middle="deep", deep_xz="", other="")
    found = modules(folder, ("ext4", "virtio_blk"))
    assert list(found) == ["deep", "middle", "virtio_blk"]
    assert all(content.startswith(b"\x7fELF") for content in found.values())


def test_a_module_that_the_kernel_has_not(tmp_path):
    with pytest.raises(LabError, match="has no module virtio_blk"):
        modules(kernel(tmp_path), ("virtio_blk",))


def unpacked(archive):
    """Name -> (mode, content), by the format's own lengths."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        begin = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[begin : begin + fields[6]])
        at = (begin + fields[6] + 3) & ~3


def test_the_archive_holds_the_agent_of_this_checkout(tmp_path):
    (tmp_path / "busybox").write_bytes(b"box")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "00-virtio_blk.ko").write_bytes(b"module")
    found = unpacked(initramfs(Image(tmp_path), "fsync = on\n"))
    assert found["init"] == (0o100755, INIT.encode())
    assert found["bin/busybox"] == (0o100755, b"box")
    assert found["modules/00-virtio_blk.ko"] == (0o100644, b"module")
    assert found["run.conf"][1] == b"fsync = on\n"
    assert b"def write_durably" in found["code/devmentor/pgagent/state.py"][1]
    order = list(found)
    assert all(order.index(name.rpartition("/")[0]) < order.index(name) for name in order if "/" in name)


def test_everything_of_ours_that_the_guest_imports_is_there():
    files = code()
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            wanted = node.module if isinstance(node, ast.ImportFrom) else None
            if wanted and wanted.split(".")[0] in ("devmentor", "devmentor_ha"):
                base = wanted.replace(".", "/")
                assert f"{base}.py" in files or f"{base}/__init__.py" in files, f"{name} imports {wanted}"


def test_settings_of_the_platform_without_what_the_guest_has_not(tmp_path):
    template = tmp_path / "conf.j2"
    template.write_text(
        "# fsync = off\nfsync = off\nport = {{ port }}\nssl = on\nssl_ca_file = '/ca'\narchive_mode = on\n"
        "listen_addresses = '*'\nwal_level = 'logical'\n"
    )
    assert platform_settings(template) == "fsync = off\nwal_level = 'logical'\n"


def test_settings_of_the_role():
    assert "synchronous_commit = on\n" in platform_settings()
