"""What holds for the templates of all roles."""

import re
from pathlib import Path

import pytest

ROLES = Path(__file__).parents[2] / "roles"
# A role's variable (not __its_own) that is calculated with as it came: -e name=600 is a string, '600' * 2 is '600600'.
RAW = re.compile(r"(?<![\w.'])(?!__)[a-z]+_\w+ (?:\*|//?|\+|-) (?![\[(_'])")


@pytest.mark.parametrize("template", sorted(ROLES.glob("*/templates/*.j2")), ids=lambda path: path.name)
def test_numbers_are_made_of_what_was_given_before_they_are_calculated_with(template: Path) -> None:
    expressions = re.findall(r"\{\{(.*?)\}\}", template.read_text(), re.DOTALL)
    assert [text for text in expressions if RAW.search(text)] == []
