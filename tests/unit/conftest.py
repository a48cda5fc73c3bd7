"""Lets unit tests run the modules of library/ in this process, as Ansible would on a host."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class _Finder:
    """Resolves ansible.module_utils.devmentor.* and devmentor_ha.* to module_utils/, as Ansible does for a host."""

    prefixes = ("ansible.module_utils.devmentor", "ansible.module_utils.devmentor_ha")

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if not any(name == prefix or name.startswith(prefix + ".") for prefix in self.prefixes):
            return None
        parts = name.removeprefix("ansible.").split(".")
        base = ROOT.joinpath(*parts)
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if not file.exists():
            return None
        locations = [str(base)] if base.is_dir() else None
        return importlib.util.spec_from_file_location(name, file, submodule_search_locations=locations)


sys.meta_path.append(_Finder())  # type: ignore[arg-type]


class _Exit(Exception):
    pass


def load_module(name: str) -> ModuleType:
    """The Python module library/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"library_{name}", ROOT / "library" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs library/NAME.py with parameters; returns its result with `failed` always set."""
    from ansible.module_utils import basic

    def run(name: str, check: bool = False, **parameters: Any) -> dict[str, Any]:
        arguments = {"ANSIBLE_MODULE_ARGS": {**parameters, "_ansible_check_mode": check, "_ansible_diff": True}}
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps(arguments).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy")
        results: list[dict[str, Any]] = []

        def finish(failed: bool) -> Callable[..., None]:
            def inner(self: Any, *args: Any, **values: Any) -> None:
                if args:
                    values["msg"] = args[0]
                results.append({"failed": failed, **values})
                raise _Exit

            return inner

        monkeypatch.setattr(basic.AnsibleModule, "exit_json", finish(False))
        monkeypatch.setattr(basic.AnsibleModule, "fail_json", finish(True))
        with contextlib.suppress(_Exit):
            load_module(name).main()
        return results[0]

    return run
