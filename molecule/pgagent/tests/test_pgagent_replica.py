"""A replica whose server dies or that is to follow anew: its agent brings it back, from within its sandbox."""

import pytest
from scenario import sql, until

testinfra_hosts = ["m2"]  # molecule/inventory: the host that is not postgres_bootstrap_primary

POSTMASTER = "head -1 /var/lib/postgresql/17/main/postmaster.pid"


def test_a_killed_server_comes_back_and_streams(host, ask):
    before = host.check_output(POSTMASTER)
    cursor = host.check_output("date +%s.%N")
    host.check_output(f"kill -9 {before}")
    # The file of the killed server is gone for a moment: the guard removes it.
    until(lambda: host.run(POSTMASTER).stdout.strip() not in ("", before) and ask("/replica").status == 200)
    assert sql(host, "SELECT pg_is_in_recovery(), (SELECT status FROM pg_stat_wal_receiver)") == "t|streaming"
    journal = f"journalctl --no-pager --output=cat --since=@{cursor}"
    assert "start guard: allow" in host.check_output(f"{journal} --unit=postgresql@17-main")
    assert "systemctl start --no-block postgresql@17-main" in host.check_output(f"{journal} _COMM=sudo")
    assert ask("/v1/status").json["committed"]["epoch"] == 1


@pytest.mark.parametrize("method", ["rewind", "reclone"])
def test_it_is_made_anew_and_streams(host, ask, method):
    before = host.check_output(POSTMASTER)
    answer = ask("/v1/rejoin", {"method": method})
    assert answer.status == 200, answer.text
    until(lambda: ask("/replica").status == 200, 60)
    assert host.check_output(POSTMASTER) != before
    assert sql(host, "SELECT pg_is_in_recovery(), (SELECT status FROM pg_stat_wal_receiver)") == "t|streaming"
    assert host.file("/var/lib/postgresql/17/main").mode == 0o700
