"""A client of PBML."""

import json

import pytest
from scenario import address, members, name, request


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
        return request(host, url, ["--request", method, *words])

    call.hosts = sorted(addresses)
    call.own = own
    return call
