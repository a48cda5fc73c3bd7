"""The wheelhouse: what the services are installed from on hosts without a package index.

Two archives, because one of them hardly ever changes:

- `deps-<digest>.tar`: the wheels of services/requirements.lock and the installer (uv), downloaded by their hashes;
- `release-<id>.tar`: the wheel of services/ itself, the requirements with all hashes, and `release.json`.

The id is the version and a digest over the sources and the locks, so that the same tree gives the same id on any
machine, and a change of one line gives another. Archives are reproducible and put in place by a rename.

A wheelhouse is for one version of Python; a lock is, too. Of software that is not ours (vLLM) a lock alone makes one,
with the same two archives; the second then holds the requirements and no wheel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from .artifacts import ArtifactError
from .artifacts_cache import locked, run_client, sha256_of

FORMAT = 1
PYTHON = "3.13"
# Python -> the services' lock for it: Debian 13's, and Debian 12's for the groups that may run there.
LOCKS = {"3.13": "requirements.lock", "3.11": "requirements-3.11.lock"}
GLIBC = 28  # 2.28: the services' lock is resolved for it
HOSTS_GLIBC = 36  # Debian 12's; what is not ours has wheels for it
SOURCE_DATE_EPOCH = 1577836800  # 2020-01-01; zip knows nothing before 1980
_VERSION_LINE = re.compile(r'^version = "(?P<version>[0-9][0-9A-Za-z.]*)"$', re.MULTILINE)
_RELEASE_ID = re.compile(r"[0-9][0-9A-Za-z.]*-[0-9a-f]{12}\Z")

Notice = Callable[[str], None]


class WheelhouseError(Exception):
    """A wheelhouse that cannot be built; the message says what, why and the remedy."""


@dataclasses.dataclass(frozen=True)
class Release:
    """A release of the services and the two archives it is installed from, on the control node."""

    id: str
    version: str
    python: str
    deps: str
    directory: Path

    @property
    def archives(self) -> list[Path]:
        """Both archives; a host needs `deps` only where it has not got it yet."""
        return [self.directory / f"{self.deps}.tar", self.directory / f"release-{self.id}.tar"]


def _source_files(services: Path, python: str = PYTHON) -> list[Path]:
    # What is linked in (devmentor_ha, which modules of library/ import too) is part of the release as any other folder.
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(services / "src", followlinks=True)
        for name in names
        if "__pycache__" not in Path(folder).parts
        and not any(part.endswith(".egg-info") for part in Path(folder).parts)
    ]
    return [services / "pyproject.toml", services / "installer.lock", services / _lock(python), *sorted(files)]


def _lock(python: str) -> str:
    """The name of the services' lock for a version of Python."""
    if python not in LOCKS:
        raise WheelhouseError(f"the services have no lock for Python {python}, only for {', '.join(LOCKS)}.")
    return LOCKS[python]


def _digest(paths: list[Path], base: Path, python: str, label: str = "") -> str:
    digest = hashlib.sha256(f"format {FORMAT} python {python}{f' label {label}' if label else ''}\n".encode())
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(base)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def describe(services: Path, directory: Path, python: str = PYTHON, label: str = "") -> Release:
    """The release that this source tree gives for a version of Python. Reads files only.

    A label makes it another one than the same tree without, as a build number would.
    """
    project = services / "pyproject.toml"
    try:
        version = str(tomllib.loads(project.read_text())["project"]["version"])
        digest = _digest(_source_files(services, python), services, python, label)
        deps = _digest([services / "installer.lock", services / _lock(python)], services, python)
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise WheelhouseError(f"{services} is not the services' source tree: {error}.") from error
    return Release(f"{version}-{digest}", version, python, f"deps-{deps}", directory)


def describe_locked(lock: Path, package: str, python: str, services: Path, directory: Path) -> Release:
    """The release of software that is not ours: what a lock pins, named after its `package`. Reads files only."""
    try:
        found = re.search(rf"^{re.escape(package)}==([0-9][0-9A-Za-z.]*)[ \\]", lock.read_text(), re.MULTILINE)
        digest = hashlib.sha256(lock.read_bytes() + (services / "installer.lock").read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise WheelhouseError(f"the lock {lock.name} cannot be read: {error}.") from error
    if not found:
        raise WheelhouseError(f"the lock {lock.name} does not pin {package}.")
    return Release(f"{found.group(1)}-{digest}", found.group(1), python, f"deps-{digest}", directory)


def find(release_id: str, directory: Path) -> Release:
    """A release built earlier, by its id. Raises WheelhouseError with the ids there are."""
    if not _RELEASE_ID.match(release_id):
        raise WheelhouseError(f"{release_id!r} is not a release id; one looks like 0.1.0-0123456789ab.")
    try:
        with tarfile.open(directory / f"release-{release_id}.tar") as bundle:
            member = bundle.extractfile("release.json")
            described = json.load(member) if member else {}
        return Release(release_id, described["version"], described["python"], described["deps"], directory)
    except FileNotFoundError as error:
        known = sorted(path.name[len("release-") : -len(".tar")] for path in directory.glob("release-*.tar"))
        raise WheelhouseError(
            f"release {release_id} is not in {directory}. There are: {', '.join(known) or 'none'}. "
            "Check out its source and run again, or choose one of these."
        ) from error


def built(release: Release) -> bool:
    """Whether both archives are there."""
    return all(path.is_file() for path in release.archives)


def build(
    services: Path, directory: Path, notice: Notice = lambda text: None, python: str = PYTHON, label: str = ""
) -> tuple[Release, bool]:
    """Have the release of this tree in `directory`. Returns it and whether something had to be built."""
    release = describe(services, directory, python, label)
    if built(release):
        return release, False
    with locked(directory / ".lock"), _snapshot(services, python) as tree:
        release = describe(tree, directory, python, label)  # of what is built, whoever edits the tree meanwhile
        deps, own = release.archives
        if not deps.is_file():
            notice(f"downloading the wheels of {services.name}/{_lock(python)} (about 105 MB)")
            with _staging(directory) as staging:
                _download([tree / "installer.lock", tree / _lock(python)], python, GLIBC, staging)
                _pack(staging, deps)
        if not own.is_file():
            notice(f"building release {release.id}")
            with _staging(directory) as staging:
                _build_own(tree, release, staging)
                _pack(staging, own)
    return release, True


def build_locked(
    lock: Path, package: str, python: str, services: Path, directory: Path, notice: Notice = lambda text: None
) -> tuple[Release, bool]:
    """Have the release of a lock in `directory`. Returns it and whether something had to be downloaded."""
    release = describe_locked(lock, package, python, services, directory)
    if built(release):
        return release, False
    with locked(directory / ".lock"):
        deps, own = release.archives
        if not deps.is_file():
            notice(f"downloading the wheels of {lock.name} (GBs with CUDA)")
            with _staging(directory) as staging:
                _download([services / "installer.lock", lock], python, HOSTS_GLIBC, staging)
                _pack(staging, deps)
        with _staging(directory) as staging:
            shutil.copyfile(lock, staging / "requirements.txt")
            # Its wheels may name what is left out on purpose: a whole set is not asked for.
            _write_description(staging, release, whole=False)
            _pack(staging, own)
    return release, True


@contextlib.contextmanager
def _snapshot(services: Path, python: str) -> Iterator[Path]:
    """A copy of the source files with fixed modes."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "services"
        for path in _source_files(services, python):
            copy = tree / path.relative_to(services)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o644)
        yield tree


@contextlib.contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=directory) as folder:
        yield Path(folder).resolve()


def platforms(glibc: int) -> list[str]:
    """pip does not take an older manylinux for a newer one: every level up to glibc 2.`glibc` is named."""
    levels = [f"manylinux_2_{minor}_x86_64" for minor in range(glibc, 4, -1)]
    return levels + [f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")]


def _download(locks: list[Path], python: str, glibc: int, staging: Path) -> None:
    options = ["--quiet", "--require-hashes", "--no-deps", "--only-binary=:all:", "--implementation=cp"]
    options += [f"--python-version={python}", *(f"--platform={name}" for name in platforms(glibc))]
    for lock in locks:
        options += ["-r", str(lock.resolve())]
    try:
        run_client([sys.executable, "-m", "pip", "download", *options, "-d", str(staging)], staging)
    except ArtifactError as error:
        raise WheelhouseError(
            f"the wheels of {locks[-1].name} could not be downloaded: {error} "
            "Remedy: check that pip on the control node reaches its index (for PyTorch's CPU build, the folder that "
            "its find-links setting names) and that the lock's versions are still there."
        ) from error


def _build_own(tree: Path, release: Release, staging: Path) -> None:
    """Our own wheel, byte for byte the same for the same sources: fixed times, modes and version."""
    # The local version makes the release visible to importlib.metadata and keeps uv's cache from mixing two.
    project = (tree / "pyproject.toml").read_text()
    local = f'version = "{release.version}+{release.id.rpartition("-")[2]}"'
    (tree / "pyproject.toml").write_text(_VERSION_LINE.sub(local, project, count=1))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH), "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, "-w", str(staging), str(tree)],
        env=environment,
        capture_output=True,
        text=True,
        umask=0o022,
        check=False,
    )
    wheels = list(staging.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        end = " ".join((done.stderr + done.stdout).splitlines()[-12:])
        raise WheelhouseError(f"the wheel of release {release.id} could not be built: {end}")
    wheel = wheels[0]
    name, version = wheel.name.split("-")[:2]
    requirements = (tree / _lock(release.python)).read_text()
    (staging / "requirements.txt").write_text(
        f"{requirements}{name}=={version} \\\n    --hash=sha256:{sha256_of(wheel)}\n"
    )
    _write_description(staging, release)


def _write_description(staging: Path, release: Release, whole: bool = True) -> None:
    described: dict[str, object] = {
        "id": release.id, "version": release.version, "python": release.python, "deps": release.deps,
    }  # fmt: skip
    if not whole:
        described["whole"] = False
    (staging / "release.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def _pack(folder: Path, target: Path) -> None:
    """A reproducible tar of a flat folder, put in place by a rename."""
    with tempfile.NamedTemporaryFile(prefix=".packing-", dir=target.parent, delete=False) as out:
        try:
            # GNU's form has room for names beyond 100 characters, which wheels for many platforms have.
            with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as bundle:
                for path in sorted(folder.iterdir()):
                    entry = tarfile.TarInfo(path.name)
                    entry.size, entry.mtime, entry.mode = path.stat().st_size, SOURCE_DATE_EPOCH, 0o644
                    with path.open("rb") as stream:
                        bundle.addfile(entry, stream)
            out.flush()
            os.fsync(out.fileno())
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            raise
    Path(out.name).chmod(0o644)
    Path(out.name).replace(target)
