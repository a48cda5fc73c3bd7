"""The virtual address: on one gateway, answering, and on the other one when the first fails. Named to come last."""

import json
import time

from scenario import members, until

testinfra_hosts = ["gateway"]
CA = "/etc/devmentor/tls/ca.crt"


def vip_of(host):
    return host.ansible("debug", "msg={{ devmentor_vip }}")["msg"]


def holders(hosts, vip):
    command = f"ip -oneline address show to {vip}/32"
    return [index for index, host in enumerate(hosts) if host.run(command).stdout.strip()]


def answers(host, vip):
    command = (
        f"curl --silent --fail --max-time 2 --cacert {CA} --header 'Authorization: Bearer key-of-lab' https://{vip}/v1/models"
    )
    result = host.run(command)
    return result.rc == 0 and "tier" in json.loads(result.stdout)


def test_the_address_fails_over_and_does_not_come_back_by_itself(host):
    hosts, vip = list(members(host, "gateway").values()), vip_of(host)
    until(lambda: len(holders(hosts, vip)) == 1, 15)
    first = holders(hosts, vip)[0]
    assert all(answers(each, vip) for each in hosts)
    assert hosts[first].run("systemctl stop haproxy").rc == 0
    try:
        until(lambda: holders(hosts, vip) == [1 - first], 20)
        until(lambda: all(answers(each, vip) for each in hosts), 10)
    finally:
        hosts[first].run("systemctl start haproxy")
    time.sleep(6)
    assert holders(hosts, vip) == [1 - first]
    assert all(answers(each, vip) for each in hosts)
