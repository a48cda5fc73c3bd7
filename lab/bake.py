"""Prebaked layers: the platform's Debian packages already installed, so that a lab is deployed in minutes.

A layer lies between a suite's root file system and a host's own disk. It is keyed by the package list, starts no
service and holds no identity. When the list grew since a cached layer was made, the new one is made on top of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.errors import InventoryError
from lab.proc import run_contained
from lab.progress import Progress
from lab.state import CACHE, locked

PACKAGE_LISTS = Path(__file__).resolve().parents[1] / "roles/platform/defaults/main/packages.yml"
MAX_STACKED = 3

# Debian 13 is the platform's suite: there every package must exist. Debian 12 serves some roles only.
COMPLETE_SUITES = ("trixie",)

SCRIPT = r"""
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
root=$1 lower=$2 upper=$3 work=$4 strict=$5 resolver=$6; shift 6
mount -t overlay devmentor-bake -o "lowerdir=$lower,upperdir=$upper,workdir=$work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
printf 'exit 101\n' > "$root/usr/sbin/policy-rc.d"; chmod +x "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/etc/postgresql-common"
# An image must not hold a database cluster: its system identifier would be the same on every host.
printf 'create_main_cluster = false\n' > "$root/etc/postgresql-common/createcluster.conf"
mv "$root/etc/resolv.conf" "$root/etc/resolv.conf.lab" 2>/dev/null || true
cp "$resolver" "$root/etc/resolv.conf"
chroot "$root" apt-get update
if [ "$strict" = no ]; then
  available=""
  for package in "$@"; do
    if chroot "$root" apt-cache show "$package" >/dev/null 2>&1; then available="$available $package"
    else echo "LAB-ABSENT $package"; fi
  done
  # shellcheck disable=SC2086
  set -- $available
fi
chroot "$root" apt-get install -y --no-install-recommends \
  -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-unsafe-io "$@"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root/usr/sbin/policy-rc.d" "$root/etc/resolv.conf"
if [ -e "$root/etc/resolv.conf.lab" ]; then mv "$root/etc/resolv.conf.lab" "$root/etc/resolv.conf"; fi
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/systemd/random-seed"
: > "$root/etc/machine-id"
# Installed but not started, as the roles leave them when they install: a booting host runs nothing it was not told to.
find "$upper/etc/systemd/system" -path '*.wants/*' -type l -exec rm -f {} + 2>/dev/null || true
# The self-signed key that packages fall back on is made by each host for itself at its first boot.
if [ -e "$root/etc/ssl/private/ssl-cert-snakeoil.key" ]; then
  rm -f "$root/etc/ssl/private/ssl-cert-snakeoil.key" "$root/etc/ssl/certs/ssl-cert-snakeoil.pem"
  cat > "$root/etc/systemd/system/lab-snakeoil.service" <<'UNIT'
[Unit]
Description=Make this host's own self-signed certificate
ConditionPathExists=!/etc/ssl/private/ssl-cert-snakeoil.key
[Service]
Type=oneshot
ExecStart=/usr/sbin/make-ssl-cert generate-default-snakeoil
[Install]
WantedBy=multi-user.target
UNIT
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
  ln -sf ../lab-snakeoil.service "$root/etc/systemd/system/multi-user.target.wants/lab-snakeoil.service"
fi
"""


def read_package_lists(path: Path = PACKAGE_LISTS) -> dict[str, list[str]]:
    """Debian packages by inventory group; `all` is for every host."""
    if not path.exists():
        raise InventoryError(f"no package lists at {path}", "the lab reads roles/platform/defaults/main/packages.yml")
    lists = (yaml.safe_load(path.read_text()) or {}).get("devmentor_packages")
    if not isinstance(lists, dict):
        raise InventoryError(f"{path} does not hold the mapping devmentor_packages")
    return {str(group): [str(name) for name in names or []] for group, names in lists.items()}


def packages_for(groups: Iterable[str], lists: Mapping[str, list[str]]) -> list[str]:
    """The union of the lists of these groups and of `all`, sorted."""
    return sorted({name for group in ("all", *groups) for name in lists.get(group, [])})


@dataclass(frozen=True)
class Layer:
    """A cached layer: what it holds, and the layers it stands on (the topmost first)."""

    path: Path
    packages: frozenset[str]
    below: tuple[Path, ...]

    @property
    def stack(self) -> list[Path]:
        return [self.path / "upper", *(path / "upper" for path in self.below)]


def read_layer(path: Path) -> Layer | None:
    meta = path / "layer.json"
    if not meta.exists():
        return None
    data = json.loads(meta.read_text())
    return Layer(path, frozenset(data["packages"]), tuple(path.parent / name for name in data["below"]))


def best_base(layers: Iterable[Layer], packages: Iterable[str]) -> Layer | None:
    """The cached layer that already holds most of the list and nothing else, if it is not stacked too high."""
    wanted = frozenset(packages)
    usable = [layer for layer in layers if layer.packages <= wanted and len(layer.below) + 1 < MAX_STACKED]
    return max(usable, key=lambda layer: len(layer.packages), default=None)


def ensure_layer(suite: str, rootfs: Path, progress: Progress, packages: Iterable[str] | None = None) -> list[Path]:
    """Overlay directories with the packages installed, the topmost first; made when not in the cache."""
    lists = read_package_lists()
    wanted = sorted(set(packages if packages is not None else packages_for(lists, lists)))
    digest = hashlib.sha256("\0".join([rootfs.name, SCRIPT, *wanted]).encode()).hexdigest()[:12]
    folder = CACHE / "baked" / rootfs.name
    target = folder / digest
    if cached := read_layer(target):
        return cached.stack
    with locked(folder / "lock"):
        if cached := read_layer(target):
            return cached.stack
        known = filter(None, (read_layer(path) for path in folder.iterdir() if path.suffix != ".partial"))
        base = best_base(known, wanted)
        _bake(suite, rootfs, target, wanted, base, progress)
        made = read_layer(target)
        if made is None:
            raise AssertionError(f"{target} was baked without a description")
        return made.stack


def _bake(suite: str, rootfs: Path, target: Path, wanted: list[str], base: Layer | None, progress: Progress) -> None:
    staged = target.with_suffix(".partial")
    shutil.rmtree(staged, ignore_errors=True)
    for folder in ("root", "upper", "work"):
        (staged / folder).mkdir(parents=True)
    (staged / "upper").chmod(0o755)
    below = base.stack if base else []
    lower = ":".join(str(path) for path in [*below, rootfs])
    new = [name for name in wanted if base is None or name not in base.packages]
    log = CACHE / "logs" / f"bake-{suite}.log"
    with progress.step(f"baking {len(new)} packages into a layer for Debian {suite} (once per package list)"):
        run_contained(
            ["sh", "-c", SCRIPT, "bake", staged / "root", lower, staged / "upper", staged / "work",
             "yes" if suite in COMPLETE_SUITES else "no", "/etc/resolv.conf", *new],
            log=log,
            what=f"baking packages into the {suite} layer",
        )  # fmt: skip
    absent = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("LAB-ABSENT ")]
    if absent:
        progress.say(f"Debian {suite} has no {', '.join(absent)}: left out of its layer")
    meta = {"packages": wanted, "below": [path.parent.name for path in below], "suite": suite}
    (staged / "layer.json").write_text(json.dumps(meta, indent=2) + "\n")
    shutil.rmtree(staged / "work")
    (staged / "root").rmdir()
    staged.rename(target)
