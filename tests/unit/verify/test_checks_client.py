"""How a check asks: what a command on the host answers."""

from __future__ import annotations

import pytest
from verify_doubles import outcome

from module_utils.devmentor.checks_base import Failed
from module_utils.devmentor.checks_client import run_command


def test_commands_complain_in_the_evidence() -> None:
    assert run_command(["cat"], stdin="x") == "x"
    result, evidence = outcome(lambda: run_command(["sh", "-c", "echo gone >&2; exit 3"]))
    assert (result, evidence) == ("unknown", "sh exited 3: gone")
    assert outcome(lambda: run_command(["/nonexistent/psql"]))[0] == "unknown"
    with pytest.raises(Failed, match="quorum"):
        run_command(["sh", "-c", "echo 'WARNING: canceling wait for synchronous replication' >&2"])
