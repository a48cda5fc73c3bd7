"""Preflight on the versions of Debian packages that an inventory names."""

from typing import Any

import pytest
from test_inventory import lines, only, platform

PACKAGE_SPECS = {"platform": {name: {"type": "dict"} for name in ("devmentor_package_versions", "devmentor_packages")}}
PACKAGES = {"all": ["acl"], "gateway": ["haproxy"], "qdrant": []}


@pytest.mark.parametrize("version", ["3.0.1-1", "1:2.2.7-1+b2", "3.5.0+ds1-0+deb12u1", "17.5-0~exp1"])
def test_a_debian_version_passes(version: str) -> None:
    assert (
        lines(
            platform(specs=PACKAGE_SPECS, devmentor_packages=PACKAGES, devmentor_package_versions={"haproxy": version})
        )
        == []
    )


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (
            {"haprxy": "1"},
            "devmentor_package_versions.haprxy: is of no package that the platform installs (did you mean haproxy?)",
        ),
        (
            {"haproxy": ""},
            "devmentor_package_versions.haproxy: is empty. Remedy: give it one of `apt-cache madison haproxy`",
        ),
        ({"haproxy": None}, "devmentor_package_versions.haproxy: is empty"),
        ({"haproxy": 3.0}, "devmentor_package_versions.haproxy: is 3.0, no Debian version"),
        ({"haproxy": "latest"}, "is 'latest', no Debian version"),
        ({"haproxy": "3.0 -o x"}, "no Debian version"),
    ],
)
def test_a_package_version_that_cannot_be_is_refused(versions: dict[str, Any], message: str) -> None:
    checked = platform(specs=PACKAGE_SPECS, devmentor_packages=PACKAGES, devmentor_package_versions=versions)
    assert message in only(checked)
