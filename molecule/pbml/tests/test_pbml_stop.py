"""One host stops. Named to come last, and on one host: the other one must be there."""

import uuid

from scenario import until

testinfra_hosts = ["m1"]


def test_a_stop_drains_and_the_other_host_goes_on(host, ask):
    other = ask.hosts[-1]
    host.check_output("systemctl stop pbml.service pbml-worker.service")
    try:
        assert host.check_output("systemctl show pbml.service --property=Result") == "Result=success"
        name = f"molecule-{uuid.uuid4().hex}"
        assert ask("POST", "/v1/documents", {"id": name, "text": "Served by one."}, to=other).status == 202
        until(lambda: ask("GET", f"/v1/documents/{name}", to=other).json["status"] == "live", 60)
        assert ask("DELETE", f"/v1/documents/{name}", to=other).status == 202
    finally:
        host.check_output("systemctl start pbml.service pbml-worker.service")
