"""A release on a real host: it runs, offline, is shared, is not writable, and half of one is never taken for whole."""

import json

import pytest

testinfra_hosts = ["pbml"]

ROOT = "/opt/devmentor"


@pytest.fixture
def release(host):
    return json.loads(host.file(f"{ROOT}/pbml/release.json").content_string)["id"]


@pytest.mark.parametrize("app", ["pbml", "llamacpp"])
def test_current_is_the_release_that_is_recorded(host, app, release):
    assert host.check_output(f"readlink -f {ROOT}/{app}/current") == f"{ROOT}/.store/{release}"
    assert json.loads(host.file(f"{ROOT}/{app}/release.json").content_string)["app"] == app


def test_the_release_knows_itself(host, release):
    program = "import importlib.metadata as m; print(m.version('devmentor-services'))"
    version = host.check_output(f'{ROOT}/pbml/current/bin/python -I -c "{program}"')
    assert version == release.replace("-", "+", 1)


def test_a_process_stays_in_its_release_after_a_switch(host, release):
    first = host.check_output(f"head -2 {ROOT}/pbml/current/bin/devmentor-pbml")
    assert "realpath" in first  # the interpreter is found beside the real file, not through `current`


def test_everybody_may_read_and_only_root_write(host):
    assert host.check_output(f"find {ROOT} -xdev ! -type l ! -path '*/cache/*' -perm /022 | head -5") == ""
    assert host.check_output(f"find {ROOT}/.store/*/ -xdev ! -path '*/cache/*' ! -user root | head -5") == ""
    assert host.run(f"runuser -u nobody -- {ROOT}/pbml/current/bin/python -I -c 'import devmentor'").rc == 0


def test_archives_are_not_left(host):
    assert host.check_output(f"ls {ROOT}/.store/incoming") == ""
    assert host.check_output(f"ls -d {ROOT}/.store/.staging* 2>/dev/null | wc -l") == "0"


def test_the_wheels_are_on_disk_once(host, release):
    libraries = f"find {ROOT}/.store/{release} -name '*.so*' -type f"
    assert host.check_output(f"{libraries} | wc -l") != "0"
    assert host.check_output(f"{libraries} -links -2 | wc -l") == "0"  # every library is a hard link into uv's cache
