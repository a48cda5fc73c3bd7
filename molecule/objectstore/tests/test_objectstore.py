"""The store speaks S3 over TLS to who has the key, and to nobody else."""

import pytest
from scenario import TLS

testinfra_hosts = ["objectstore"]

CURL = f"curl --silent --show-error --max-time 10 {TLS} --aws-sigv4 aws:amz:lab:s3"


@pytest.fixture
def url(host):
    return f"https://{host.check_output('hostname')}:9000"


@pytest.fixture
def keys(secret_file):
    """curl's configuration with the keys."""
    return secret_file("s3", 'user = "{{ vault_objectstore_access_key }}:{{ vault_objectstore_secret_key }}"')


def test_buckets_are_there(host, url, keys):
    listing = host.check_output(f"{CURL} --config {keys} {url}/")
    assert "<Name>pgbackrest</Name>" in listing
    assert "<Name>qdrant</Name>" in listing


def test_an_object_comes_back(host, url, keys):
    host.check_output("echo -n hello >/tmp/molecule-greeting")
    upload = "--fail --upload-file /tmp/molecule-greeting"
    host.check_output(f"{CURL} --config {keys} {upload} {url}/qdrant/molecule/greeting")
    assert host.check_output(f"{CURL} --config {keys} {url}/qdrant/molecule/greeting") == "hello"
    host.check_output(f"{CURL} --config {keys} --request DELETE {url}/qdrant/molecule/greeting")


def test_a_wrong_key_is_refused(host, url):
    status = host.check_output(f"{CURL} --output /dev/null --write-out '%{{http_code}}' --user a:b {url}/")
    assert status == "403"


def test_no_plain_http(host, url, keys):
    answer = host.run(f"{CURL} --fail --config {keys} {url.replace('https', 'http')}/")
    assert answer.rc != 0


def test_the_key_is_not_in_the_process_list(host):
    assert host.ansible.get_variables()["vault_objectstore_secret_key"] not in host.check_output("ps -eo args")
    assert host.file("/etc/devmentor/objectstore/environment").mode == 0o600


def test_it_runs_as_itself(host):
    process = host.process.get(comm="rclone")
    assert process.user == "objectstore"
    assert host.service("objectstore").is_enabled
