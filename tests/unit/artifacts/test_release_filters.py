"""Which Python a host's release is for."""

import importlib.util
from pathlib import Path

from module_utils.devmentor.wheelhouse import LOCKS

_spec = importlib.util.spec_from_file_location(
    "release_filters", Path(__file__).resolve().parents[3] / "filter_plugins/releases.py"
)
assert _spec is not None
assert _spec.loader is not None
releases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(releases)


def test_each_debian_has_a_python_and_each_python_a_lock():
    assert releases.debian_python({"distribution_major_version": "12"}) == "3.11"
    assert releases.debian_python({"distribution_major_version": "13"}) == "3.13"
    assert releases.debian_python({}) == "3.13", "facts that were not gathered: the host itself refuses another"
    assert set(releases.PYTHONS.values()) == set(LOCKS)


def test_the_pythons_of_a_run():
    facts = {"a": "13", "b": "12", "c": "13"}
    hostvars = {name: {"ansible_facts": {"distribution_major_version": major}} for name, major in facts.items()}
    assert releases.release_pythons(facts, hostvars) == ["3.13", "3.11"]
    assert releases.release_pythons(["d"], {"d": {}}) == ["3.13"]
