"""What the scenarios' tests share.

testinfra does not template variables: what is read of `host.ansible.get_variables()` must be literal in
molecule/inventory, in what the lab writes beside it, or in the vault. Defaults of roles are not there at all.
"""

import json
import shlex
import time
from dataclasses import dataclass

TLS = "--cacert /etc/devmentor/tls/ca.crt"
CERTIFICATE = "--cert /etc/devmentor/tls/host.crt --key /etc/devmentor/tls/host.key"
CLIENT = f"{TLS} {CERTIFICATE}"


@dataclass
class Answer:
    """Of an HTTP request."""

    status: int
    text: str

    @property
    def json(self):
        return json.loads(self.text)


def request(host, url, words):
    """Made on the host by curl with these further words, showing the platform's certificate."""
    result = host.run(
        f"curl --silent --show-error --max-time 30 {CLIENT} {shlex.join(words)} --write-out '\\n%{{http_code}}' {url}"
    )
    assert result.rc == 0, result.stderr
    text, _, status = result.stdout.rpartition("\n")
    return Answer(int(status), text)


def name(host):
    """The host's name in the inventory."""
    return host.ansible.get_variables()["inventory_hostname"]


def address(host):
    """The host's address in the lab."""
    return host.ansible.get_variables()["lab_addresses"][name(host)]


def members(host, group):
    """The hosts of a group that are up, by name."""
    groups = host.ansible.get_variables()["groups"]
    running = sorted(set(groups[group]) - set(groups.get("offline", [])))
    inventory = host.backend.ansible_inventory
    return {each: host.get_host(f"ansible://{each}", ansible_inventory=inventory) for each in running}


def eventually(check, seconds=30):
    """What `check` returns as soon as that is true, else what it returned last."""
    deadline = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def until(check, seconds=30):
    """Fails where `check` does not come true in time."""
    assert eventually(check, seconds), f"not so after {seconds} s"


def sql(host, text, database="postgres"):
    """What the host's PostgreSQL answers to its superuser, unaligned."""
    return host.check_output(f'cd / && runuser -u postgres -- psql -XAtqc "{text}" {database}')
