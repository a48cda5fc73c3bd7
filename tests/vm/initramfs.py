"""The first file system of the guest: loads the disk's driver, mounts Debian read-only, starts the guest's program.

It also carries the code under test, straight from the checkout, so that the image needs no rebuild when that changes.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.vm.image import Image
from tools.runs import ROOT

# Mount points that every Debian has; what must be written lies on /run, in memory.
INIT = """#!/bin/busybox sh
busybox mount -t devtmpfs devtmpfs /dev
busybox mount -t sysfs sysfs /sys
for module in /modules/*; do busybox insmod $module; done
for disk in /sys/block/vd*; do
  read -r name < $disk/serial
  if [ "$name" = root ]; then busybox mount -t ext4 -o ro /dev/${disk##*/} /system; fi
done
busybox mount --move /dev /system/dev
busybox mount --move /sys /system/sys
busybox mount -t proc proc /system/proc
busybox mount -t tmpfs tmpfs /system/run
busybox mount -t tmpfs tmpfs /system/tmp
busybox mkdir -m 1777 /system/dev/shm
busybox mount -t tmpfs tmpfs /system/dev/shm
busybox cp -r /code /run.conf /system/run/
exec busybox chroot /system /usr/bin/env -i PATH=/usr/bin:/usr/sbin:/bin:/sbin LC_ALL=C.UTF-8 PYTHONPATH=/run/code \
  /usr/bin/python3 -u /run/code/guest.py "$@"
"""
FOLDERS = ("bin", "dev", "sys", "system", "modules")
TEMPLATE = ROOT / "roles" / "postgres" / "templates" / "10-platform.conf.j2"
# What the guest has not: certificates, a network, an archive.
ELSEWHERE = ("ssl", "archive", "listen_addresses")


def code() -> dict[str, Path]:
    """Path in the guest -> file of the checkout: the agent and what it imports, and the guest's program."""
    services = ROOT / "services" / "src"
    found = {"guest.py": Path(__file__).with_name("guest.py")}
    for package in ("devmentor/common", "devmentor/pgagent", "devmentor_ha"):
        found |= {f"{package}/{path.name}": path for path in sorted((services / package).glob("*.py"))}
    found["devmentor/__init__.py"] = services / "devmentor" / "__init__.py"
    return found


def platform_settings(template: Path = TEMPLATE) -> str:
    """The lines of role postgres' configuration that no inventory changes: those about durability are among them."""
    lines = re.findall(r"^\w+ = [^{\n]+$", template.read_text(), re.MULTILINE)
    return "".join(f"{line}\n" for line in lines if not line.startswith(ELSEWHERE))


def initramfs(image: Image, settings: str) -> bytes:
    """The archive. `settings`: postgresql.conf lines of the platform, for /run/run.conf of the guest."""
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o755, INIT.encode()),
        "bin/busybox": (0o755, image.busybox.read_bytes()),
        "run.conf": (0o644, settings.encode()),
    }
    files |= {f"modules/{path.name}": (0o644, path.read_bytes()) for path in image.modules}
    files |= {f"code/{name}": (0o644, path.read_bytes()) for name, path in code().items()}
    return b"".join(_archive(files))


def _archive(files: Mapping[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """cpio's "newc" form, as the kernel's Documentation/driver-api/early-userspace/buffer-format.rst has it."""
    folders = {*FOLDERS, *(str(parent) for name in files for parent in Path(name).parents)} - {"."}
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in sorted(folders)]
    entries += [(name, stat.S_IFREG | mode, content) for name, (mode, content) in files.items()]
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        # inode, mode, uid, gid, links, mtime, size, device and rdev (major, minor), size of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        yield head + b"\0" * (-len(head) % 4)
        yield content + b"\0" * (-len(content) % 4)
