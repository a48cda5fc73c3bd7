"""Users, directories, files, links and absences of a host: what `config_files` does.

What differs is decided in files.py; this is the part that writes.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from .files import (
    Attributes,
    Current,
    FilesError,
    account_gaps,
    attribute_reasons,
    digest,
    file_reasons,
    missing_parents,
    parse_mode,
    read_current,
    with_block,
)

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

Item = dict[str, Any]
"""An entry of one of the module's options, as the argument spec leaves it."""


class Files:
    """Applies the desired state; collects what changed and the diff."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.check: bool = module.check_mode
        self.changed: list[str] = []
        self.diff: list[dict[str, str]] = []

    def note(self, path: str, reason: str, before: str = "", after: str = "") -> None:
        self.changed.append(f"{path}: {reason}")
        self.diff.append({"before_header": path, "after_header": path, "before": before, "after": after})

    def run(self, command: list[str]) -> None:
        code, out, err = self.module.run_command(command)
        if code != 0:
            raise FilesError(f"{shlex.join(command)} failed with {code}: {(err or out).strip()}")

    # users -------------------------------------------------------------
    def user(self, want: Item) -> None:
        name, primary = want["name"], want["group"] or want["name"]
        system = ["--system"] if want["system"] else []
        for kind, gap in account_gaps(want):
            if kind == "group":
                self.note(f"group {gap}", "missing", "", f"group {gap}\n")
                command = ["groupadd", *system, gap]
            elif kind == "user":
                self.note(f"user {name}", "missing", "", f"user {name}\n")
                home = ["--home-dir", want["home"], "--no-create-home"]
                command = ["useradd", *system, "--gid", primary, *home, "--shell", want["shell"], name]
            else:
                self.note(f"user {name}", f"not in group {gap}", "", f"{name} in {gap}\n")
                command = ["usermod", "--append", "--groups", gap, name]
            if not self.check:
                self.run(command)

    # paths -------------------------------------------------------------
    def own(self, path: str, want: Attributes) -> None:
        try:
            uid, gid = pwd.getpwnam(want.owner).pw_uid, grp.getgrnam(want.group).gr_gid
        except KeyError as error:
            raise FilesError(
                f"{path}: owner {want.owner} or group {want.group} does not exist ({error}). "
                "Name it in `users`, or install the package that brings it first."
            ) from error
        os.chown(path, uid, gid, follow_symlinks=False)
        os.chmod(path, want.mode)

    def directory(self, item: Item) -> None:
        path, want = item["path"], Attributes(item["owner"], item["group"], parse_mode(item["mode"], item["path"]))
        have = read_current(path)
        if have.kind == "link" and os.path.isdir(path):
            raise FilesError(f"{path}: is a link to {have.target}, a directory is wanted. Remove the link.")
        if have.kind not in ("absent", "directory"):
            raise FilesError(f"{path}: is a {have.kind}, a directory is wanted. Move it away and run again.")
        reasons = ["missing"] if have.kind == "absent" else attribute_reasons(have, want)
        if not reasons:
            return
        before = have.attributes.text() + "\n" if have.attributes else ""
        self.note(path, ", ".join(reasons), before, want.text() + "\n")
        if self.check:
            return
        self.parents(path)
        if have.kind == "absent":
            os.mkdir(path)
        self.own(path, want)

    def parents(self, path: str) -> None:
        for parent in missing_parents(path):
            os.mkdir(parent, 0o755)

    def stage(self, item: Item, secret: bool) -> tuple[bytes, str, Attributes] | None:
        """Notes and validates one file if it differs. Returns (content, path, wanted attributes), or None."""
        path, content = item["path"], item["content"].encode()
        want = Attributes(item["owner"], item["group"], parse_mode(item["mode"], path))
        have = read_current(path)
        if have.kind in ("directory", "other"):
            raise FilesError(f"{path}: is a {have.kind}, a file is wanted. Move it away and run again.")
        reasons = file_reasons(have, content, want)
        if not reasons:
            return None
        before, after = self.shown(have, secret), self.shown(Current("file", want, content), secret)
        self.note(path, ", ".join(reasons), before, after)
        if item["validate"] and have.content != content:
            self.validate(item, content)
        if self.check:
            return None
        return content, path, want

    @staticmethod
    def shown(state: Current, secret: bool) -> str:
        if state.kind != "file" or state.attributes is None or state.content is None:
            return ""
        if secret:
            return f"(secret, sha256 {digest(state.content)}) {state.attributes.text()}\n"
        return state.content.decode("utf-8", "replace")

    def validate(self, item: Item, content: bytes) -> None:
        words = shlex.split(item["validate"])
        if "%s" not in item["validate"]:
            raise FilesError(f"{item['path']}: validate needs %s for the staged file's path: {item['validate']!r}.")
        if not self.module.get_bin_path(words[0]):
            if self.check:
                return  # on a fresh host the package that brings the validator is not installed yet
            raise FilesError(f"{item['path']}: validator {words[0]} is not installed.")
        # Beside nothing and readable by the validator's user: a private directory of its own.
        folder = tempfile.mkdtemp(prefix="config-files-")
        try:
            staged = os.path.join(folder, os.path.basename(item["path"]))
            with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                handle.write(content)
            code, out, err = self.module.run_command([word.replace("%s", staged) for word in words])
            if code != 0:
                lines = (err.strip() or out.strip()).replace(staged, item["path"])
                raise FilesError(f"{item['path']}: `{item['validate']}` refuses the new content, kept the old: {lines}")
        finally:
            shutil.rmtree(folder)

    def put(self, content: bytes, path: str, want: Attributes) -> None:
        self.parents(path)
        handle, temporary = tempfile.mkstemp(prefix=".config-files-", dir=os.path.dirname(path))
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            self.own(temporary, want)
            try:
                os.replace(temporary, path)
            except OSError as error:
                # A file that is a mount of its own, as containers have /etc/hosts, can only be written in place.
                if error.errno != errno.EBUSY:
                    raise
                with open(path, "wb") as stream:
                    stream.write(content)
                os.unlink(temporary)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def block(self, item: Item) -> tuple[bytes, str, Attributes] | None:
        """Notes one block if the file's differs. Returns as stage() does; the rest of the file is left as it is."""
        path = item["path"]
        have = read_current(path)
        if have.kind not in ("absent", "file"):
            raise FilesError(f"{path}: is a {have.kind}, a file is wanted. Move it away and run again.")
        before = (have.content or b"").decode("utf-8", "surrogateescape")
        after = with_block(before, item["name"], item["content"], path)
        if before == after:
            return None
        self.note(path, f"block {item['name']}", before, after)
        content = after.encode("utf-8", "surrogateescape")
        return None if self.check else (content, path, have.attributes or Attributes("root", "root", 0o644))

    def link(self, item: Item) -> None:
        path, have = item["path"], read_current(item["path"], with_content=False)
        if have.kind == "link" and have.target == item["target"]:
            return
        if have.kind == "directory":
            raise FilesError(f"{path}: is a directory, a link is wanted. Move it away and run again.")
        self.note(path, f"-> {item['target']}", f"{have.kind} {have.target or ''}\n", f"link {item['target']}\n")
        if self.check:
            return
        self.parents(path)
        temporary = f"{path}.config-files"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(item["target"], temporary)
        os.replace(temporary, path)

    def absent(self, path: str) -> None:
        have = read_current(path, with_content=False)
        if have.kind == "absent":
            return
        self.note(path, f"{have.kind} is to be absent", f"{have.kind}\n", "")
        if self.check:
            return
        if have.kind == "directory":
            os.rmdir(path)
        else:
            os.unlink(path)

    def apply(self, params: Item) -> None:
        """Has all of it. Raises FilesError or OSError; files are all validated before the first is put in place."""
        for user in params["users"]:
            self.user(user)
        for item in params["directories"]:
            self.directory(item)
        staged = [self.stage(item, False) for item in params["files"]]
        staged += [self.stage(item, True) for item in params["secret_files"]]
        staged += [self.block(item) for item in params["blocks"]]
        for entry in staged:
            if entry:
                self.put(*entry)
        for item in params["links"]:
            self.link(item)
        for path in params["absent"]:
            self.absent(path)
