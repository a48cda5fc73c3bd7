from pathlib import Path

import pytest

from lab.bake import Layer, best_base, packages_for, read_package_lists
from lab.errors import InventoryError


def layer(name, packages, below=()):
    return Layer(Path(f"/cache/{name}"), frozenset(packages), tuple(Path(f"/cache/{each}") for each in below))


def test_packages_of_a_host_are_the_union_of_its_groups_and_all():
    lists = {"all": ["curl"], "db": ["postgresql-17", "curl"], "web": ["haproxy"]}
    assert packages_for(["db"], lists) == ["curl", "postgresql-17"]
    assert packages_for(lists, lists) == ["curl", "haproxy", "postgresql-17"]


def test_the_projects_own_lists_can_be_read():
    lists = read_package_lists()
    assert "postgresql-17" in lists["postgres"]
    assert all(isinstance(name, str) for names in lists.values() for name in names)


def test_a_missing_list_is_an_error(tmp_path):
    with pytest.raises(InventoryError, match="no package lists"):
        read_package_lists(tmp_path / "packages.yml")


def test_a_grown_list_starts_from_the_largest_layer_that_it_contains():
    small, large, foreign = layer("s", "ab"), layer("l", "abc"), layer("f", "abx")
    assert best_base([small, large, foreign], "abcd") is large
    assert best_base([foreign], "abcd") is None


def test_layers_are_not_stacked_for_ever():
    assert best_base([layer("t", "abc", ("u", "v"))], "abcd") is None


def test_a_stack_is_the_topmost_first():
    assert layer("t", "ab", ("u",)).stack == [Path("/cache/t/upper"), Path("/cache/u/upper")]
