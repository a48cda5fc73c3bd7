"""A client of the agents."""

import json
import shlex
from dataclasses import dataclass

import pytest
from scenario import CLIENT, address


@dataclass
class Answer:
    status: int
    text: str

    @property
    def json(self):
        return json.loads(self.text)


@pytest.fixture
def ask(host, secret_file):
    """Calls the host's own agent, with the platform's certificate and the agents' token unless told otherwise."""
    token = secret_file("agent-token", "Authorization: Bearer {{ vault_pgagent_token }}")

    def call(path, body=None, *, authorization=f"@{token}"):
        words = ["--header", authorization] if authorization else []
        if body is not None:
            words += ["--data-binary", json.dumps(body)]
        result = host.run(
            f"curl --silent --show-error --max-time 30 {CLIENT} {shlex.join(words)} "
            f"--write-out '\\n%{{http_code}}' https://{address(host)}:5440{path}"
        )
        assert result.rc == 0, result.stderr
        text, _, status = result.stdout.rpartition("\n")
        return Answer(int(status), text)

    return call
