"""What the guest boots from: Debian's cloud kernel, a small Debian with PostgreSQL and Python, a fresh data directory.

Made by mmdebstrap once per content and kept in .cache/vm; nothing is mounted, file systems are filled by mke2fs.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import machine
from lab.errors import LabError
from lab.proc import run, run_contained
from lab.progress import Progress
from tools.runs import ROOT

CACHE = ROOT / ".cache" / "vm"
# What this test needs besides the lab's programs.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
SUITE = "trixie"
KERNEL = "linux-image-cloud-amd64"
# The agent's modules import the second line; the server is the one that role postgres installs.
PACKAGES = (
    "busybox-static", "python3", "postgresql-17",
    "python3-aiohttp", "python3-psycopg", "python3-pydantic", "python3-pydantic-settings",
)  # fmt: skip
# What they need themselves is found and loaded first; crc32c is looked for by ext4 under another name.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
UNREAD = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
TEMPLATE = "var/lib/postgresql/template"
DATA_MIB = 512
STATE_MIB = 32

HOOKS = (
    # Configured with the package it would make a cluster of its own.
    'essential: mkdir -p "$1/etc/postgresql-common" && '
    'echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"',
    # Unpacked and not installed: an installed kernel brings initramfs-tools and an initramfs, which nobody would use.
    'customize: mkdir "$1/kernel" && cd "$1/kernel" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" && '
    f"apt-get download $(apt-cache depends {KERNEL} | sed -n 's/^ *Depends: \\(linux-image-[0-9]\\)/\\1/p') && "
    "dpkg-deb -x linux-image-*.deb . && rm linux-image-*.deb",
    f'customize: chroot "$1" install -d -o root -g root /{TEMPLATE} && '
    f'chroot "$1" install -d -o postgres -g postgres -m 0700 /{TEMPLATE}/data && '
    f'chroot "$1" runuser -u postgres -- /usr/lib/postgresql/17/bin/initdb -D /{TEMPLATE}/data '
    "--auth=trust --encoding=UTF8 --locale=C --no-sync",
)


@dataclass(frozen=True)
class Image:
    """Files that every boot shares and none changes."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def root(self) -> Path:
        return self.folder / "root.img"

    @property
    def data(self) -> Path:
        """A file system with a fresh, cleanly stopped PostgreSQL data directory in `data`."""
        return self.folder / "data.img"

    @property
    def busybox(self) -> Path:
        return self.folder / "busybox"

    @property
    def modules(self) -> list[Path]:
        """Kernel modules, uncompressed, in the order in which to load them."""
        return sorted((self.folder / "modules").iterdir())


def ensure_image(progress: Progress) -> Image:
    """The image, built where this checkout has none of the same content. Raises CommandError."""
    sources = machine.sources_for(SUITE, machine.debian_sources())
    settings = machine.apt_settings()
    content = [*PACKAGES, *MODULES, *UNREAD, *HOOKS, *sources, settings, str(DATA_MIB)]
    target = CACHE / f"{SUITE}-{hashlib.sha256(chr(0).join(content).encode()).hexdigest()[:12]}"
    if target.is_dir():
        return Image(target)
    staged = target.with_suffix(".partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    tree = staged / "tree"
    options = [f"--{stage}-hook={hook}" for stage, hook in (text.split(": ", 1) for text in HOOKS)]
    options += [f"--aptopt={line}" for line in settings.splitlines()]
    options += [f"--dpkgopt=path-exclude={path}" for path in UNREAD]
    with progress.step(f"building the guest, Debian {SUITE} with PostgreSQL (once per checkout)"):
        run_contained(
            ["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase",
             f"--include={','.join(PACKAGES)}", *options, SUITE, tree, *sources],
            log=CACHE / "image.log",
            what=f"building the guest's Debian {SUITE}",
        )  # fmt: skip
        _pack(tree, staged)
    staged.rename(target)
    return Image(target)


def _pack(tree: Path, target: Path) -> None:
    kernel = tree / "kernel"
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    image.rename(target / "vmlinuz")
    (libraries,) = (kernel / "usr/lib/modules").iterdir()
    (target / "modules").mkdir()
    for number, (name, content) in enumerate(modules(libraries).items()):
        (target / "modules" / f"{number:02}-{name}.ko").write_bytes(content)
    shutil.copy(tree / "usr/bin/busybox", target / "busybox")
    make_ext4(target / "data.img", DATA_MIB, tree / TEMPLATE)
    shutil.rmtree(kernel)
    shutil.rmtree(tree / TEMPLATE)
    used = int(run(["du", "-sm", tree]).split()[0])
    # It is never written to, so it needs no journal.
    make_ext4(target / "root.img", used + used // 4 + 64, tree, "-O", "^has_journal")
    shutil.rmtree(tree)


def make_ext4(path: Path, size_mib: int, content: Path | None = None, *options: str) -> None:
    """A file system in a sparse file. Raises CommandError."""
    path.unlink(missing_ok=True)
    filled = ["-d", str(content)] if content else []
    run(["mke2fs", "-q", "-F", "-t", "ext4", *options, *filled, path, f"{size_mib}M"])


def modules(libraries: Path, wanted: Sequence[str] = MODULES) -> dict[str, bytes]:
    """Name -> content of these modules of a kernel and of those that they need, in the order in which to load them.

    Modules that are built into the kernel are left out. Raises LabError for one that is nowhere.
    """
    builtin = {_name(line) for line in (libraries / "modules.builtin").read_text().splitlines()}
    paths = {_name(path.name): path for path in libraries.rglob("*.ko*")}
    found: dict[str, bytes] = {}

    def need(name: str) -> None:
        if name in builtin or name in found:
            return
        if name not in paths:
            raise LabError(f"the kernel of {KERNEL} has no module {name}", "see MODULES in tests/vm/image.py")
        content = paths[name].read_bytes()
        content = lzma.decompress(content) if paths[name].suffix == ".xz" else content
        # Section .modinfo holds what depmod would read: "depends=a,b" between zero bytes.
        depends = re.search(rb"(?<=\0)depends=([^\0]*)\0", content)
        for other in depends[1].decode().split(",") if depends and depends[1] else []:
            need(_name(other))
        found[name] = content

    for name in wanted:
        need(name)
    return found


def _name(path: str) -> str:
    return re.sub(r"\.ko(\.\w+)?$", "", path.rsplit("/", 1)[-1]).replace("-", "_")
