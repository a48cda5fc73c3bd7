"""A replica's timers fire too, and leave the backup to the primary."""

from scenario import sql

testinfra_hosts = ["m2"]  # molecule/inventory: the host that is not postgres_bootstrap_primary


def test_its_backup_does_not_begin(host):
    assert sql(host, "SELECT pg_is_in_recovery()") == "t"
    host.check_output("systemctl start pgbackrest-backup@diff.service")
    assert host.check_output("systemctl show -p Result --value pgbackrest-backup@diff.service") == "exec-condition"
