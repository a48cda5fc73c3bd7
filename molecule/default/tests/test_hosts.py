"""A host of the lab is a whole host: its own systemd, its own identity, names for all."""

testinfra_hosts = ["postgres"]  # a group; testinfra knows no patterns


def test_systemd_has_no_failed_unit(host):
    assert host.run("systemctl is-system-running --wait").stdout.strip() == "running"


def test_names_resolve(host):
    for name in ("m1", "m2"):
        assert host.run(f"getent hosts {name}").rc == 0


def test_packages_are_there_and_run_nothing(host):
    assert host.package("postgresql-17").is_installed
    assert not host.service("prometheus").is_running
    # testinfra's `socket` without an address looks at 0.0.0.0 and :: only, and Debian's clusters listen on localhost.
    assert host.check_output("ss --no-header --listening --tcp --numeric 'sport = :5432'") == ""
