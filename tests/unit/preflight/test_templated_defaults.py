"""A check that reads a role's default must get its value: a template is of another type, or never empty."""

import re
from pathlib import Path
from typing import Any

import yaml

from module_utils.devmentor import inventory_view

ROOT = Path(__file__).parents[3]
READERS = sorted((ROOT / "module_utils" / "devmentor").glob("p[rl]*.py"))


def test_what_the_checks_read_is_templated() -> None:
    roles = inventory_view.load_roles(ROOT / "roles", lambda path: yaml.safe_load(Path(path).read_text()))
    known: dict[str, Any] = dict(roles.defaults)
    read = {name for path in READERS for name in re.findall(r'"([a-z]+_[a-z0-9_]+)"', path.read_text())}
    templates = {name for name in read & known.keys() if "{{" in str(known[name])}
    assert "qwen_api_keys" in templates
    assert templates <= set(inventory_view._TEMPLATED_DEFAULTS)
