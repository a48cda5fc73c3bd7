from __future__ import annotations

import pytest

from tests.unit.report.report_runs import HERE, Reported, reported


@pytest.fixture(scope="session")
def big_run(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """One run of report_playbook.yml for all tests that look at it."""
    scratch = tmp_path_factory.mktemp("report")
    return reported(HERE / "report_playbook.yml", scratch, "--diff", "-e", "tier=qwen", "-e", "db_pass=hunter2hunter2")
