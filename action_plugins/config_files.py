"""Reads what config_files takes from the control node (`src`, `template`); the module of the same name does the rest.

A host whose local fact says that just this is settled there (settled.py) is not asked.

Instead of `content: "{{ lookup('ansible.builtin.template', ...) }}"`: that lookup copies every variable of the
host, deeply, for each file. ansible.builtin.template, which does it as below, takes one file a task.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import sys
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.local_facts import held
from module_utils.devmentor.run_changes import RUN

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What made a host's record and judges it.
CODE = [
    ROOT / "library" / "config_files.py",
    *(ROOT / "module_utils" / "devmentor" / f"{name}.py" for name in ("file_control", "files", "settled")),
    *(ROOT / "module_utils" / "devmentor" / f"{name}.py" for name in ("unit_control", "units")),
]


class ActionModule(ActionBase):  # type: ignore[misc]
    """All templates are rendered before the host is touched: one that fails changes nothing."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        # What has no variables of its own gives the same content wherever it is named.
        self.contents: dict[tuple[str, str], str] = {}
        for option in ("files", "secret_files"):
            entries = arguments.get(option)
            # Anything else is the module's to refuse.
            if isinstance(entries, list):
                arguments[option] = [self.rendered(entry, variables) for entry in entries]
        fingerprint = self.fingerprint(arguments)
        if RUN.none_yet() and fingerprint in held(variables, "settled"):
            return {**result, "changed": False, "changed_paths": [], "pending": [], "diff": []}
        if directory := self._templar.template(variables.get("devmentor_settled_dir")):
            name = re.sub(r"[^a-z0-9]+", "-", self._task.get_name().lower()).strip("-")
            arguments["record"] = {"directory": directory, "name": name, "fingerprint": fingerprint}
        return {**result, **self._execute_module(module_args=arguments, task_vars=variables)}

    @staticmethod
    def fingerprint(arguments: dict[str, Any]) -> str:
        """Of everything the module is asked for, and of its code."""
        found = hashlib.sha256(json.dumps(arguments, sort_keys=True, default=str).encode())
        for file in CODE:
            found.update(file.read_bytes())
        return found.hexdigest()

    def rendered(self, entry: Any, variables: dict[str, Any]) -> Any:
        """The entry with `content` in the place of `src`, or of `template` and `template_vars`."""
        option = next((option for option in ("src", "template") if isinstance(entry, dict) and option in entry), None)
        if option is None or "content" in entry:
            return entry
        rest = {key: value for key, value in entry.items() if key not in ("src", "template", "template_vars")}
        name, own = str(entry[option]), entry.get("template_vars", {})
        if not own and (option, name) in self.contents:
            return {**rest, "content": self.contents[option, name]}
        try:
            source = pathlib.Path(self._find_needle("files" if option == "src" else "templates", name))
        except AnsibleError as error:
            raise AnsibleActionFail(f"{entry.get('path')}: {option} {name} was not found: {error}") from error
        text = self._loader.get_text_file_contents(str(source))
        if option == "src":
            content = str(text)
        else:
            content = self.templated(source, text, {**variables, **own}, str(entry.get("path")))
        if not own:
            self.contents[option, name] = content
        return {**rest, "content": content}

    def templated(self, source: pathlib.Path, text: str, variables: dict[str, Any], path: str) -> str:
        """The text of a template, rendered for `path`."""
        searchpath = [str(source.parent), *variables.get("ansible_search_path", [])]
        templar = self._templar.copy_with_new_env(
            searchpath=searchpath, available_variables=variables
        )
        try:
            source_text = trust_as_template(text)
            content = templar.template(source_text, escape_backslashes=False, overrides={"trim_blocks": True})
        except AnsibleError as error:
            raise AnsibleActionFail(f"{path}: template {source.name}: {error}") from error
        return "" if content is None else str(content)
