"""Renders the `template` entries of config_files on the control node; the module of the same name does the rest.

Instead of `content: "{{ lookup('ansible.builtin.template', ...) }}"`: that lookup copies every variable of the
host, deeply, for each file. ansible.builtin.template, which does it as below, takes one file a task.
"""

from __future__ import annotations

import pathlib
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template


class ActionModule(ActionBase):  # type: ignore[misc]
    """All templates are rendered before the host is touched: one that fails changes nothing."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        # A template without variables of its own gives the same content wherever it is named.
        self.contents: dict[str, str] = {}
        for option in ("files", "secret_files"):
            entries = arguments.get(option)
            # Anything else is the module's to refuse.
            if isinstance(entries, list):
                arguments[option] = [self.rendered(entry, variables) for entry in entries]
        answer = self._execute_module(module_args=arguments, task_vars=variables)
        return {**result, **answer}

    def rendered(self, entry: Any, variables: dict[str, Any]) -> Any:
        """The entry with `content` in the place of `template` and `template_vars`."""
        if not isinstance(entry, dict) or "template" not in entry or "content" in entry:
            return entry
        rest = {key: value for key, value in entry.items() if key not in ("template", "template_vars")}
        name, own = str(entry["template"]), entry.get("template_vars", {})
        if not own and name in self.contents:
            return {**rest, "content": self.contents[name]}
        try:
            source = pathlib.Path(self._find_needle("templates", name))
        except AnsibleError as error:
            raise AnsibleActionFail(f"{entry.get('path')}: template {name} was not found: {error}") from error
        searchpath = [str(source.parent), *variables.get("ansible_search_path", [])]
        templar = self._templar.copy_with_new_env(
            searchpath=searchpath, available_variables={**variables, **own}
        )
        text = trust_as_template(self._loader.get_text_file_contents(str(source)))
        try:
            content = templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True})
        except AnsibleError as error:
            raise AnsibleActionFail(f"{entry.get('path')}: template {name}: {error}") from error
        content = "" if content is None else str(content)
        if not own:
            self.contents[name] = content
        return {**rest, "content": content}
