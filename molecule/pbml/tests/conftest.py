"""A client of PBML."""

import json
import shlex
from dataclasses import dataclass

import pytest
from scenario import CLIENT, address, members, name


@dataclass
class Answer:
    status: int
    text: str

    @property
    def json(self):
        return json.loads(self.text)


@pytest.fixture
def ask(host, secret_file):
    """Calls PBML of any host from this one, as the first tenant unless told otherwise."""
    addresses = {each: address(peer) for each, peer in members(host, "pbml").items()}
    own = name(host)
    first = secret_file("api-key", "Authorization: Bearer {{ (vault_api_keys | dict2items | first).value }}")

    def call(method, path, body=None, *, to=own, port=8090, authorization=f"@{first}", headers=()):
        words = ["--header", authorization] if authorization else []
        for header in headers:
            words += ["--header", header]
        if body is not None:
            words += ["--data-binary", json.dumps(body)]
        url = f"https://{addresses[to]}:{port}{path}"
        result = host.run(
            f"curl --silent --show-error --max-time 30 {CLIENT} --request {method} "
            f"{shlex.join(words)} --write-out '\\n%{{http_code}}' {url}"
        )
        assert result.rc == 0, result.stderr
        text, _, status = result.stdout.rpartition("\n")
        return Answer(int(status), text)

    call.hosts = sorted(addresses)
    call.own = own
    return call
