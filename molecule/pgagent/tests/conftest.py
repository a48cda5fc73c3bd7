"""A client of the agents."""

import json

import pytest
from scenario import address, request


@pytest.fixture
def ask(host, secret_file):
    """Calls the host's own agent, with the platform's certificate and the agents' token unless told otherwise."""
    token = secret_file("agent-token", "Authorization: Bearer {{ vault_pgagent_token }}")

    def call(path, body=None, *, authorization=f"@{token}"):
        words = ["--header", authorization] if authorization else []
        if body is not None:
            words += ["--data-binary", json.dumps(body)]
        return request(host, f"https://{address(host)}:5440{path}", words)

    return call
