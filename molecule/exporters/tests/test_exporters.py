"""Every exporter of a host's groups answers over mutual TLS only, and has reached what it reports on."""

import re
import time

import pytest
from scenario import CLIENT, TLS, address

TRIXIE = {"node": 9100, "process": 9256, "postgres": 9187, "pgbouncer": 9127, "redis": 9121, "blackbox": 9115}
BOOKWORM = {"node": 9100, "process": 9256}

testinfra_hosts = ["postgres", "debian12"]


def exporters(host):
    return TRIXIE if host.system_info.codename == "trixie" else BOOKWORM


def scrape(host, name, options=CLIENT, scheme="https"):
    url = f"{scheme}://{address(host)}:{exporters(host)[name]}/metrics"
    return host.run(f"curl --silent --show-error --max-time 10 {options} --write-out '\\n%{{http_code}}' {url}")


def value(text, metric):
    found = re.search(rf"^{re.escape(metric)} (\S+)$", text, re.MULTILINE)
    assert found, f"no {metric}"
    return float(found.group(1))


def test_units_run_and_are_enabled(host):
    for name in exporters(host):
        unit = host.service(f"prometheus-{name}-exporter")
        assert unit.is_running, name
        assert unit.is_enabled, name


def test_metrics_are_served_to_a_platform_certificate(host):
    for name in exporters(host):
        assert scrape(host, name).stdout.endswith("\n200"), name


def test_nobody_without_a_certificate_gets_in(host):
    for name in exporters(host):
        refused = scrape(host, name, TLS)
        assert refused.rc != 0, name
        # No words of the refusal are looked for: the connection may be gone before the alert is read.
        assert refused.stdout.endswith("\n000"), name


def test_no_plain_text(host):
    for name in exporters(host):
        assert not scrape(host, name, "", "http").stdout.endswith("\n200"), name


@pytest.mark.parametrize(
    ("name", "metric"), [("postgres", "pg_up"), ("pgbouncer", "pgbouncer_up"), ("redis", "redis_up")]
)
def test_exporter_has_reached_its_server(host, name, metric):
    if name not in exporters(host):
        assert not host.service(f"prometheus-{name}-exporter").is_running
        return
    assert value(scrape(host, name).stdout, metric) == 1


def test_textfiles_of_any_role_are_collected(host):
    folder = "/var/lib/prometheus/node-exporter"
    host.check_output(f"echo 'devmentor_version_info{{version=\"1.2.3\"}} 1' >{folder}/molecule.prom")
    try:
        assert value(scrape(host, "node").stdout, 'devmentor_version_info{version="1.2.3"}') == 1
    finally:
        host.check_output(f"rm {folder}/molecule.prom")


def test_versions_are_served(host):
    version = host.package("prometheus-node-exporter").version
    metric = f'devmentor_version_info{{component="node_exporter",version="{version}"}}'
    for _ in range(40):
        text = scrape(host, "node").stdout
        if metric in text:
            assert value(text, metric) == 1
            return
        time.sleep(1)
    pytest.fail(f"no {metric}")


def test_slices_are_measured_again_and_again(host):
    metric = 'devmentor_slice_cpu_seconds_total{slice="exporters"}'
    first = value(scrape(host, "node").stdout, metric)
    for _ in range(40):
        time.sleep(1)
        if value(scrape(host, "node").stdout, metric) > first:
            return
    pytest.fail("the CPU time of devmentor-exporters.slice stands still")


def test_units_and_disks_of_the_platform_are_reported(host):
    text = scrape(host, "node").stdout
    unit = 'name="prometheus-node-exporter.service",state="active",type="simple"'
    assert value(text, f"node_systemd_unit_state{{{unit}}}") == 1
    assert re.search(r'^node_filesystem_avail_bytes\{.*mountpoint="/"\}', text, re.MULTILINE)


def test_passwords_are_for_the_exporters_alone(host):
    for name in ("postgres.password", "cache.json"):
        file = host.file(f"/etc/devmentor/exporters/{name}")
        if host.system_info.codename == "trixie":
            assert (file.user, file.group, oct(file.mode)) == ("root", "prometheus", "0o640")
        else:
            assert not file.exists
