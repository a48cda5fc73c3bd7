"""Releases of the Python services on a host: installed side by side, switched by one rename.

    <root>/.store/<id>/             the release: a virtual environment, immutable, shared by all apps of the host
    <root>/.store/wheels/<deps>/    the wheels it was installed from, and the installer
    <root>/.store/cache/            uv's cache; releases hold hard links into it
    <root>/.store/incoming/         archives that the control node copied here; gone once unpacked
    <root>/<app>/releases/<id>      -> ../../.store/<id>
    <root>/<app>/current            -> releases/<id>
    <root>/<app>/surge              -> releases/<id>, what the app's stand-in in a rolling update runs
    <root>/<app>/release.json       written at every switch: newer than the process that must be restarted

A release comes into the store by a rename of a finished and flushed directory, so one that is there is whole. State is
read from links and names alone; whatever an interrupted run left half done is made again or removed by the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

SYSTEM_PYTHON = "/usr/bin/python3"
INSTALL_TIMEOUT_S = 600


class ReleaseError(Exception):
    """A release that cannot be installed or switched to; the message says which, what and the remedy."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The release an app shall run. `deps` names its wheels, `python` the interpreter version they were made for,
    `entry` the console script that is loaded before a switch (devmentor-APP where it is empty)."""

    app: str
    id: str
    deps: str
    python: str
    keep: int = 3
    entry: str = ""


@dataclasses.dataclass
class Outcome:
    """What was done, in words, the archives without which it cannot be done, and the release that ran before."""

    actions: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    previous: str = ""


class Releases:
    """The releases below `root` (devmentor_release_dir)."""

    def __init__(self, root: Path, compile_bytecode: bool = False) -> None:
        self._root = root
        self._store = root / ".store"
        self._compile = compile_bytecode

    def current(self, app: str) -> str:
        """Id of the release that `app` is switched to, empty where there is none or the link leads nowhere."""
        link = self._root / app / "current"
        return link.readlink().name if link.is_symlink() and link.exists() else ""

    def releases(self, app: str) -> list[str]:
        """Ids of an app's releases, the one switched to last first."""
        links = (self._root / app / "releases").glob("*")
        return [link.name for link in sorted(links, key=lambda link: link.lstat().st_mtime_ns, reverse=True)]

    def switched(self, wanted: Wanted) -> bool:
        """Whether the app is switched to the wanted release and that was recorded."""
        return self.current(wanted.app) == wanted.id and self._marker(wanted.app).get("id") == wanted.id

    def ensure(self, wanted: Wanted, check: bool = False, stage: bool = False) -> Outcome:
        """Install and switch. Where archives are missing nothing changes and they are named: copy them, call again.

        With `check` the outcome says what would be done. With `stage` it is installed and loaded, and not switched to.
        """
        if self.switched(wanted) or (stage and wanted.id in self.releases(wanted.app)):
            return Outcome(previous=str(self._marker(wanted.app).get("previous", "")))
        outcome = Outcome(previous=self.current(wanted.app))
        installed = (self._store / wanted.id).is_dir()
        if check:
            outcome.actions += [] if installed else [f"install {wanted.id}"]
            outcome.actions.append(f"stage {wanted.app}" if stage else f"switch {wanted.app} to {wanted.id}")
            return outcome
        with self._locked():
            if not installed:
                outcome.missing = self._missing(wanted)
                if outcome.missing:
                    return outcome
                self._install(wanted)
                outcome.actions.append(f"install {wanted.id}")
            self._smoke(wanted)
            if stage:
                # The link keeps it from being pruned.
                (self._root / wanted.app / "releases").mkdir(parents=True, exist_ok=True)
                _link(self._root / wanted.app / "releases" / wanted.id, f"../../.store/{wanted.id}")
                outcome.actions.append(f"stage {wanted.app} {wanted.id}")
                return outcome
            self._switch(wanted, outcome.previous)
            outcome.actions.append(f"switch {wanted.app} to {wanted.id}")
            outcome.actions += self._prune(wanted)
        return outcome

    def switch(self, app: str, to: str, entry: str = "", check: bool = False) -> str:
        """Switch to a release of the app that is here, `previous` for the one before the last switch; its id.

        Raises ReleaseError where it is not here, naming those that are. With `check` nothing is switched.
        """
        current = self.current(app)
        wanted = str(self._marker(app).get("previous", "")) if to == "previous" else to
        if wanted not in self.releases(app) or not (self._store / wanted).is_dir():
            here = ", ".join(self.releases(app)) or "none"
            raise ReleaseError(
                f"there is no release {wanted or 'before this one'}. Here are: {here}. "
                "Remedy: name one of these, or deploy the wanted one."
            )
        if wanted != current and not check:
            release = json.loads((self._store / wanted / "release.json").read_text())
            with self._locked():
                target = Wanted(app, wanted, str(release["deps"]), str(release.get("python", "")), entry=entry)
                self._smoke(target)
                self._switch(target, current)
        return wanted

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        (self._store / "cache").mkdir(parents=True, exist_ok=True)
        (self._store / "cache").chmod(0o700)
        with (self._store / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _marker(self, app: str) -> dict[str, object]:
        try:
            marker = json.loads((self._root / app / "release.json").read_text())
        except (OSError, ValueError):
            return {}
        return marker if isinstance(marker, dict) else {}

    def _incoming(self, name: str) -> Path:
        return self._store / "incoming" / f"{name}.tar"

    def _missing(self, wanted: Wanted) -> list[str]:
        names = [] if (self._store / "wheels" / wanted.deps).is_dir() else [wanted.deps]
        return [f"{name}.tar" for name in [*names, f"release-{wanted.id}"] if not self._incoming(name).is_file()]

    def _install(self, wanted: Wanted) -> None:
        version = ".".join(str(part) for part in sys.version_info[:2])
        if version != wanted.python:
            raise ReleaseError(
                f"release {wanted.id} is made for Python {wanted.python}, this host has {version}. "
                "Remedy: let the run gather the host's facts (no --tags that leave them out), so that it gets the "
                "release for its Python; the services have one for Debian 13 and one for Debian 12."
            )
        wheels = self._unpack_wheels(wanted.deps)
        with tempfile.TemporaryDirectory(prefix=".own-", dir=self._store) as folder:
            own = Path(folder)
            _unpack(self._incoming(f"release-{wanted.id}"), own)
            staging = self._store / f".staging-{wanted.id}"
            shutil.rmtree(staging, ignore_errors=True)
            uv = str(wheels / "uv")
            self._uv([uv, "venv", "--quiet", "--no-project", "--relocatable", "--python", SYSTEM_PYTHON, str(staging)])
            python = str(staging / "bin" / "python")
            install = [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                python,
                "--no-index",
                "--no-deps",
                "--require-hashes",
            ]
            install += ["--find-links", str(wheels), "--find-links", str(own)]
            install += ["--compile-bytecode"] if self._compile else []
            self._uv([*install, "-r", str(own / "requirements.txt")])
            if json.loads((own / "release.json").read_text()).get("whole", True):
                self._uv([uv, "pip", "check", "--quiet", "--python", python])
            shutil.copyfile(own / "release.json", staging / "release.json")
            (staging / ".lock").unlink(missing_ok=True)  # uv leaves it writable by everybody
        # On disk before it has its name: after a power cut a release is whole or not there.
        subprocess.run(["sync", "--file-system", str(staging)], check=True)
        staging.rename(self._store / wanted.id)
        self._incoming(f"release-{wanted.id}").unlink()

    def _unpack_wheels(self, deps: str) -> Path:
        wheels = self._store / "wheels" / deps
        if wheels.is_dir():
            return wheels
        staging = self._store / "wheels" / f".staging-{deps}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        _unpack(self._incoming(deps), staging)
        _extract_uv(staging)
        staging.rename(wheels)
        self._incoming(deps).unlink()
        return wheels

    def _uv(self, command: list[str]) -> None:
        # Nothing of the host's own configuration may send uv to an index or to another interpreter.
        environment = {
            "HOME": str(self._store),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "UV_CACHE_DIR": str(self._store / "cache"),
            "UV_NO_CONFIG": "1",
            "UV_OFFLINE": "1",
            "UV_PYTHON_DOWNLOADS": "never",
        }
        _run(command, environment, f"{Path(command[0]).name} {' '.join(command[1:3])}")

    def _smoke(self, wanted: Wanted) -> None:
        """Load the app's entry point with the release's own interpreter, before anything is switched to it.

        Run as root, this also leaves the compiled form of every module the app loads at its start, which its own user
        could not write.
        """
        load = (
            "import importlib.metadata as m, sys; "
            "[e] = m.entry_points(group='console_scripts', name=sys.argv[1]); e.load()"
        )
        python, entry = str(self._store / wanted.id / "bin" / "python"), wanted.entry or f"devmentor-{wanted.app}"
        _run(
            [python, "-I", "-c", load, entry],
            {"PATH": "/usr/bin:/bin"},
            f"loading {entry}",
        )

    def _switch(self, wanted: Wanted, previous: str) -> None:
        app = self._root / wanted.app
        (app / "releases").mkdir(parents=True, exist_ok=True)
        _link(app / "releases" / wanted.id, f"../../.store/{wanted.id}")
        # First what a full disk refuses: there it stays at the release that it has, and is back without a word written.
        marker = app / ".release.json.new"
        marker.write_text(json.dumps({"app": wanted.app, "id": wanted.id, "previous": previous}, indent=2) + "\n")
        _link(app / "current", f"releases/{wanted.id}")
        marker.replace(app / "release.json")

    def _prune(self, wanted: Wanted) -> list[str]:
        """Drop this app's oldest releases, then what no app on the host refers to any more."""
        stand_in = self._root / wanted.app / "surge"
        kept = stand_in.readlink().name if stand_in.is_symlink() else ""
        for old in self.releases(wanted.app)[wanted.keep :]:
            if old == kept:
                continue
            (self._root / wanted.app / "releases" / old).unlink()
        used = {link.name for link in self._root.glob("*/releases/*")}
        removed = []
        for path in self._store.iterdir():
            # A staging directory that is left belongs to an interrupted run: this one holds the lock.
            if path.name.startswith((".staging-", ".own-", ".trash-")) or (
                path.name not in used and (path / "release.json").is_file()
            ):
                _remove(path)
                removed.append(path.name)
        deps = {json.loads(path.read_text())["deps"] for path in self._store.glob("*/release.json")}
        stale = [path for path in (self._store / "wheels").iterdir() if path.name not in deps]
        for path in stale:
            _remove(path)
            removed.append(path.name)
        if stale:  # hard links: what releases still use stays on disk
            shutil.rmtree(self._store / "cache", ignore_errors=True)
        return [f"remove {name}" for name in sorted(removed)]


def _unpack(archive: Path, target: Path) -> None:
    """Files of a flat archive. By hand: Debian 12's tarfile has no filters (PEP 706)."""
    try:
        with tarfile.open(archive) as bundle:
            for member in bundle:
                source = bundle.extractfile(member) if Path(member.name).name == member.name else None
                if source is None or not member.isreg():
                    raise tarfile.ReadError(f"{member.name!r} is not a plain file")
                with source, (target / member.name).open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                    if out.tell() != member.size:
                        raise tarfile.ReadError(f"{member.name} ends early")
                (target / member.name).chmod(0o644)
    except (tarfile.TarError, EOFError) as error:
        archive.unlink()
        raise ReleaseError(
            f"{archive.name} is damaged ({error}); it was removed. Run again to copy it anew."
        ) from error


def _extract_uv(wheels: Path) -> None:
    [wheel] = wheels.glob("uv-*.whl")
    with zipfile.ZipFile(wheel) as bundle:
        [member] = [name for name in bundle.namelist() if name.endswith(".data/scripts/uv")]
        with bundle.open(member) as source, (wheels / "uv").open("wb") as out:
            shutil.copyfileobj(source, out)
    (wheels / "uv").chmod(0o755)
    wheel.unlink()


def _link(path: Path, target: str) -> None:
    """Point a symbolic link at `target`, atomically; its time is that of this switch."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.rename(path)


def _remove(path: Path) -> None:
    """Delete a directory; its name goes first, so that half of it is never taken for a release."""
    if not path.name.startswith(".trash-"):
        trash = path.with_name(f".trash-{path.name}")
        shutil.rmtree(trash, ignore_errors=True)
        path = path.rename(trash)
    shutil.rmtree(path, ignore_errors=True)


def _run(command: list[str], environment: dict[str, str], what: str) -> None:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, cwd="/", check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"{what} did not finish in {INSTALL_TIMEOUT_S} s.") from error
    if done.returncode:
        end = " ".join(line.strip() for line in (done.stdout + done.stderr).splitlines()[-4:])
        raise ReleaseError(f"{what} ended with {done.returncode}: {end}")
