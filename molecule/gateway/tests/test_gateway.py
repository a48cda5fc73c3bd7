"""Real HAProxies and keepaliveds before real TLS listeners (tls_test_backend.py stands in for the API tiers)."""

import json
import time
from dataclasses import dataclass

import pytest
from scenario import CLIENT, members, until

testinfra_hosts = ["gateway"]

CA = "/etc/devmentor/tls/ca.crt"
ORDERS = "/run/tls-test-backend"
EJECTION_SECONDS = 10  # converge.yml
LIMIT = 300


@dataclass
class Answer:
    status: int
    version: str
    headers: dict
    body: str

    @property
    def json(self):
        return json.loads(self.body)


def ask(host, path, *options, key="key-of-lab", address="127.0.0.1", method="GET"):
    authorization = f"--header 'Authorization: Bearer {key}'" if key else ""
    command = (
        f"curl --silent --max-time 20 --cacert {CA} --request {method} {authorization} {' '.join(options)} "
        f"--dump-header - --write-out '\\n%{{http_code}} %{{http_version}}' https://{address}{path}"
    )
    result = host.run(command)
    assert result.rc == 0, (command, result.stderr, result.stdout)
    text, _, status = result.stdout.replace("\r", "").rpartition("\n")
    head, _, body = text.partition("\n\n")
    code, version = status.split()
    headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
    return Answer(int(code), version, headers, body)


def instance_of(host, *options):
    """The host whose stand-in answered; whatever else the gateway says is told."""
    answer = ask(host, "/v1/models", *options)
    assert answer.status == 200, answer
    return answer.json["host"]


def admin(host, command):
    return host.run(f"echo '{command}' | socat -t 5 stdio UNIX-CONNECT:/run/haproxy/admin.sock").stdout


def status_of(host, server, backend="qwen"):
    for line in admin(host, "show stat").splitlines():
        fields = line.split(",")
        if fields[:2] == [backend, server]:
            return fields[17]
    raise AssertionError(f"{backend}/{server} is not in show stat")


def times_down(host, server, backend="qwen"):
    """How often HAProxy took a server out since its last reload: a count, so a slow look cannot miss it."""
    lines = admin(host, "show stat").removeprefix("# ").splitlines()
    column = lines[0].split(",").index("chkdown")
    return next(int(line.split(",")[column]) for line in lines[1:] if line.split(",")[:2] == [backend, server])


@pytest.fixture(scope="module")
def names(gateways):
    return list(gateways)


@pytest.fixture(scope="module")
def gateways(host):
    return members(host, "gateway")


class Orders:
    """Tells the stand-ins to misbehave."""

    def __init__(self, gateways):
        self.gateways = gateways

    def __call__(self, name, order):
        assert self.gateways[name].run(f"touch {ORDERS}/{order}").rc == 0

    def take_back(self):
        for gateway in self.gateways.values():
            gateway.run(f"rm -f {ORDERS}/*")


@pytest.fixture
def orders(gateways):
    """All orders are taken back at the end, and everything is in service again before the next test."""
    given = Orders(gateways)
    yield given
    given.take_back()
    for gateway in gateways.values():
        for name in gateways:
            for tier in ("qwen", "pbml"):
                until(lambda g=gateway, n=name, t=tier: status_of(g, n, t).startswith("UP"))


def test_units_run_in_their_slice(host):
    for unit in ("haproxy", "keepalived"):
        service = host.service(unit)
        assert service.is_running
        assert service.is_enabled
        assert "devmentor-gateway.slice" in host.run(f"systemctl show --property Slice {unit}").stdout


def test_the_key_itself_is_on_no_gateway(host):
    assert host.run("grep -r -e key-of-lab -e key-of-admin /etc/haproxy /etc/keepalived").rc == 1
    map_file = host.file("/etc/haproxy/tenants.map")
    assert map_file.mode == 0o640
    assert len(map_file.content_string.splitlines()) == 4


@pytest.mark.parametrize("key", [None, "wrong", "key-of-lab-and-more"])
def test_without_a_valid_key_it_answers_401_in_openai_form(host, key):
    answer = ask(host, "/v1/models", key=key)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "bearer"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["error"]["code"] == "invalid_api_key"
    assert set(answer.json["error"]) == {"message", "type", "code", "param"}
    assert answer.headers["x-request-id"]


def test_a_request_arrives_with_its_id_its_key_and_its_client(host):
    answer = ask(host, "/v1/models", "--header 'X-Request-Id: forged'", "--header 'X-DevMentor-Conversation: c'")
    assert answer.status == 200
    arrived = answer.json["headers"]
    assert arrived["x-request-id"] == answer.headers["x-request-id"] != "forged"
    assert arrived["authorization"] == "Bearer key-of-lab"
    assert arrived["x-forwarded-proto"] == "https"
    assert arrived["x-forwarded-for"] == "127.0.0.1"
    assert arrived["x-devmentor-conversation"] == "c"


def test_the_administrators_key_passes(host):
    assert ask(host, "/v1/traces/x", key="key-of-admin").status == 200


@pytest.mark.parametrize(
    ("path", "tier"),
    [
        ("/v1/chat/completions", "qwen"),
        ("/v1/models", "qwen"),
        ("/v1/documents", "pbml"),
        ("/v1/documents/a-b", "pbml"),
        ("/v1/documents:batch", "pbml"),
        ("/v1/documents%3Abatch", "pbml"),
        ("/v1/turns", "pbml"),
        ("/v1/context", "pbml"),
        ("/v1/conversations/c/turns", "pbml"),
        ("/v1/usage", "pbml"),
        ("/v1/contexts", "qwen"),
    ],
)
def test_each_path_goes_to_its_tier(host, path, tier):
    assert ask(host, path).json["tier"] == tier


@pytest.mark.parametrize("path", ["/", "/metrics", "/ready", "/v2/models"])
def test_what_is_not_the_api_is_not_there(host, path):
    answer = ask(host, path)
    assert answer.status == 404
    assert answer.json["error"]["code"] == "not_found"


def test_a_body_above_the_limit_is_refused_before_it_is_read(host):
    answer = ask(host, "/v1/documents", f"--data {'x' * 1001}", method="POST")
    assert answer.status == 413
    assert answer.json["error"]["code"] == "request_too_large"
    assert ask(host, "/v1/documents", f"--data {'x' * 999}", method="POST").status == 200


def test_http_2_and_modern_tls_only(host):
    assert ask(host, "/v1/models").version == "2"
    assert ask(host, "/v1/models", "--http1.1").version == "1.1"
    assert host.run(f"openssl s_client -connect 127.0.0.1:443 -CAfile {CA} -tls1_2 </dev/null").rc == 0
    old = "openssl s_client -connect 127.0.0.1:443 -tls1_1 -cipher DEFAULT@SECLEVEL=0 </dev/null"
    assert host.run(old).rc != 0


def test_a_conversation_stays_where_it_is_and_conversations_spread(host, names):
    def instance(conversation):
        return instance_of(host, f"--header 'X-DevMentor-Conversation: {conversation}'")

    assert len({instance("one") for _ in range(8)}) == 1
    assert {instance(f"c{number}") for number in range(40)} == set(names)


def test_both_gateways_send_a_conversation_to_the_same_instance(gateways):
    option = "--header 'X-DevMentor-Conversation: shared'"
    assert len({instance_of(gateway, option) for gateway in gateways.values()}) == 1


def test_a_stream_arrives_while_it_is_written(host):
    command = (
        f"curl --silent --no-buffer --max-time 10 --cacert {CA} --header 'Authorization: Bearer key-of-lab' "
        "https://127.0.0.1/v1/stream/20x1 | head --lines 1"
    )
    began = time.monotonic()
    assert host.run(command).stdout == "data: 0\n"
    assert time.monotonic() - began < 6


def test_metrics_need_a_client_certificate(host):
    assert host.run(f"curl --silent --cacert {CA} https://127.0.0.1:8404/metrics").rc != 0
    page = host.run(f"curl --silent --fail {CLIENT} https://127.0.0.1:8404/metrics")
    assert page.rc == 0
    assert 'haproxy_server_status{proxy="qwen"' in page.stdout


def test_no_answer_at_all_is_tried_elsewhere_for_qwen_and_never_for_a_write_to_pbml(host, names, orders):
    orders(names[0], "drop")
    statuses = [ask(host, "/v1/chat/completions", "--data x", method="POST").status for _ in range(4)]
    assert statuses == [200] * 4
    statuses = {ask(host, "/v1/documents", "--data x", method="POST").status for _ in range(4)}
    assert statuses == {200, 502}


def burst(host, count):
    """Statuses of `count` requests on one connection, fast enough to fall between two probes."""
    command = (
        f"curl --silent --max-time 20 --cacert {CA} --header 'Authorization: Bearer key-of-burst' --output /dev/null "
        f"--write-out '%{{http_code}}\\n' 'https://127.0.0.1/v1/models?[1-{count}]'"
    )
    return [int(line) for line in host.run(command).stdout.split()]


def test_five_errors_in_a_row_eject_an_instance_and_good_probes_bring_it_back(host, names, orders):
    before = times_down(host, names[0])
    orders(names[0], "fail")
    # Where a probe falls into a burst it starts the count again; it cannot fall into each of three.
    statuses = [status for _ in range(3) for status in burst(host, 40)]
    assert set(statuses) <= {200, 500}
    assert times_down(host, names[0]) > before
    assert statuses.count(500) < len(statuses) / 2, "round robin would give it half of all requests"
    orders.take_back()
    until(lambda: status_of(host, names[0]).startswith("UP"), 2 * EJECTION_SECONDS + 20)


def test_a_client_that_is_told_off_ejects_nobody(host, names):
    assert {ask(host, "/v1/models", key="wrong").status for _ in range(6)} == {401}
    assert all(status_of(host, name).startswith("UP") for name in names)


def test_an_instance_that_is_not_ready_gets_nothing_and_no_client_notices(host, names, orders):
    orders(names[0], "unready")
    until(lambda: status_of(host, names[0]).startswith("DOWN"))
    assert {instance_of(host) for _ in range(6)} == {names[1]}


def test_with_all_ejected_the_tier_still_answers_for_itself(host, names, orders):
    for name in names:
        orders(name, "unready")
    for name in names:
        until(lambda n=name: status_of(host, n).startswith("DOWN"))
    answer = ask(host, "/v1/models")
    assert answer.status == 200
    assert answer.json["tier"] == "qwen"


def test_with_nothing_there_the_gateway_says_503_in_openai_form(host, names, gateways, orders):
    for gateway in gateways.values():
        gateway.run("systemctl stop tls-test-backend-qwen")
    try:
        answer = ask(host, "/v1/models")
        assert answer.status == 503
        assert answer.json["error"]["code"] == "unavailable"
    finally:
        for gateway in gateways.values():
            gateway.run(
                "systemd-run --unit tls-test-backend-qwen --property Restart=always --collect "
                "/usr/bin/python3 /usr/local/lib/tls_test_backend.py qwen 8080"
            )


def test_a_drained_server_stays_drained_over_a_reload_and_a_stream_survives_it(host, names):
    admin(host, f"set server qwen/{names[0]} state maint")
    try:
        host.run(
            f"curl --silent --no-buffer --max-time 30 --cacert {CA} --header 'Authorization: Bearer key-of-lab' "
            "https://127.0.0.1/v1/stream/8x1 > /tmp/stream.txt 2>&1 &"
        )
        until(lambda: host.run("grep -c data: /tmp/stream.txt").stdout.strip() not in ("0", ""))
        assert host.run("systemctl reload haproxy").rc == 0
        until(lambda: status_of(host, names[0]) == "MAINT")
        assert {instance_of(host) for _ in range(4)} == {names[1]}
        until(lambda: host.run("grep -c data: /tmp/stream.txt").stdout.strip() == "8")
    finally:
        admin(host, f"set server qwen/{names[0]} state ready")
    until(lambda: status_of(host, names[0]).startswith("UP"))


def test_the_module_drains_and_readies_through_the_units_own_sockets(host, names):
    server = f"backend=qwen server={names[0]}"

    def module(words):
        return host.ansible("haproxy_server", f"{server} {words}", check=False)

    drained = module("state=drain wait_sessions=true deadline_seconds=30 old_worker_seconds=60")
    try:
        assert drained["after"]["entries"] == [names[0], f"{names[0]}-last"]
        assert (drained["after"]["state"], drained["after"]["sessions"]) == ("drain", 0)
        assert {instance_of(host) for _ in range(4)} == {names[1]}
    finally:
        ready = module("state=ready healthy=true")
    assert (ready["after"]["state"], ready["after"]["status"]) == ("ready", "UP")
    assert status_of(host, f"{names[0]}-surge") == "MAINT"


def test_the_rate_limit_is_per_key_and_known_to_both_gateways(host, gateways):
    command = (
        f"curl --silent --max-time 60 --cacert {CA} --header 'Authorization: Bearer key-of-limited' --output /dev/null "
        f"--write-out '%{{http_code}}\\n' 'https://127.0.0.1/v1/models?[1-{LIMIT + 10}]'"
    )
    statuses = host.run(command).stdout.split()
    assert set(statuses) <= {"200", "429"}
    assert statuses[-1] == "429"
    limited = ask(host, "/v1/models", key="key-of-limited")
    assert limited.json["error"]["code"] == "rate_limit_exceeded"
    assert int(limited.headers["retry-after"]) > 0
    assert ask(host, "/v1/models").status == 200
    for gateway in gateways.values():
        until(lambda g=gateway: ask(g, "/v1/models", key="key-of-limited").status == 429)
