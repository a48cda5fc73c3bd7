"""What a gateway does with instances that fail: ejects them, asks all the same where all are out, tries elsewhere."""

from __future__ import annotations

import http.client
import time

import pytest
from gateway_pair import until

EJECTION_SECONDS = 2  # conftest.py


def conversation_on(gateway, host):
    """A conversation that is dealt to this host."""
    names = (f"c{number}" for number in range(100))
    return next(each for each in names if gateway.deals(each)[0] == host)


def test_five_errors_in_a_row_eject_an_instance_for_the_seconds_of_the_role(platform, gateway):
    conversation = conversation_on(gateway, "h1")
    h1 = platform.qwen["h1"]
    h1.orders.add("fail")
    h1.seen.clear()
    # A good probe in between (every 5 s) starts the count anew.
    while gateway.status("h1") == "UP" and len(h1.seen) < 60:
        gateway.ask("/v1/models", X_DevMentor_Conversation=conversation)
    out = time.monotonic()
    assert len(h1.seen) >= 5
    until(lambda: any("qwen/h1" in line and "Detected 5 consecutive errors" in line for line in gateway.log))
    assert gateway.status("h1").startswith("DOWN")
    h1.seen.clear()
    assert {gateway.ask("/v1/models", X_DevMentor_Conversation=conversation).status for _ in range(10)} == {200}
    assert h1.seen == [], "an ejected instance gets nothing"
    h1.orders.clear()
    until(lambda: gateway.status("h1") == "UP")
    assert EJECTION_SECONDS - 1 <= time.monotonic() - out <= EJECTION_SECONDS + 10


def test_errors_that_are_not_in_a_row_and_refusals_eject_nobody(platform, gateway):
    conversation = conversation_on(gateway, "h1")
    for _ in range(3):
        platform.qwen["h1"].orders.add("fail")
        for _ in range(4):
            assert gateway.ask("/v1/models", X_DevMentor_Conversation=conversation).status == 500
        platform.qwen["h1"].orders.clear()
        assert gateway.ask("/v1/models", X_DevMentor_Conversation=conversation).status == 200
    assert gateway.status("h1") == "UP"
    platform.qwen["h1"].orders.add("overloaded")
    assert {gateway.ask("/v1/models", X_DevMentor_Conversation=conversation).status for _ in range(8)} == {429}
    assert gateway.status("h1") == "UP"


def test_with_all_ejected_the_tier_is_asked_all_the_same(platform, gateway):
    for host, instance in platform.qwen.items():
        instance.orders.add("unready")
        until(lambda h=host: gateway.status(h).startswith("DOWN"))
    assert {gateway.ask("/v1/models").json["host"] for _ in range(8)} == {"h1", "h2"}
    until(lambda: gateway.requests()[-1]["server"] in ("qwen/h1-last", "qwen/h2-last"))


def test_servers_of_last_resort_are_not_asked_while_one_is_in_service(gateway):
    """h1 is drained with its other entry, so that nothing leads to the process that is being replaced."""
    gateway.admin("set server qwen/h1 state drain")
    for _ in range(10):
        assert gateway.ask("/v1/models").json["host"] == "h2"
    gateway.admin("set server qwen/h2 state drain; set server qwen/h1-last state drain")
    assert {gateway.ask("/v1/models").json["host"] for _ in range(6)} == {"h2"}, "by h2-last"


def test_no_answer_at_all_is_tried_elsewhere_for_qwen(platform, gateway):
    conversation = conversation_on(gateway, "h1")
    platform.qwen["h1"].orders.add("drop")
    answer = gateway.ask("/v1/chat/completions", "POST", body=b"x" * 1000, X_DevMentor_Conversation=conversation)
    assert (answer.status, answer.json["host"], answer.json["body"]) == (200, "h2", 1000)
    assert "/v1/chat/completions" in platform.qwen["h1"].paths


def test_an_answer_that_had_begun_is_not_asked_for_again(platform, gateway):
    conversation = conversation_on(gateway, "h1")
    platform.qwen["h1"].orders.add("break")
    for each in platform.qwen.values():
        each.seen.clear()
    with pytest.raises(http.client.IncompleteRead):
        gateway.ask("/v1/chat/completions", "POST", body=b"x", X_DevMentor_Conversation=conversation)
    assert platform.qwen["h1"].paths == ["/v1/chat/completions"]
    assert platform.qwen["h2"].paths == []


def test_a_write_to_pbml_is_sent_once_where_it_arrived(platform, gateway):
    for each in platform.pbml.values():
        each.orders.add("drop")
        each.seen.clear()
    answer = gateway.ask("/v1/documents", "POST", body=b"x")
    assert (answer.status, answer.json["error"]["code"]) == (502, "bad_gateway")
    assert sum(len(each.seen) for each in platform.pbml.values()) == 1


def test_a_write_to_pbml_goes_elsewhere_where_no_connection_came_about(platform, gateway):
    platform.pbml["h1"].stop()
    answers = [gateway.ask("/v1/documents", "POST", body=b"x") for _ in range(4)]
    assert {(answer.status, answer.json["host"]) for answer in answers} == {(200, "h2")}
    assert [each.path for each in platform.pbml["h2"].seen].count("/v1/documents") == 4


def test_a_certificate_of_another_host_is_refused(platform, gateway):
    """The stand-in's server carries the host's name, not its own: verifyhost."""
    stand_in = platform.instances["qwen_surge", "h1"]
    own, stand_in.tls = stand_in.tls, platform.tls["h2"]
    stand_in.start()
    try:
        gateway.admin("set server qwen/h1-surge state ready")
        until(lambda: gateway.stat("h1-surge", "check_status").endswith("L6RSP"))
        until(lambda: gateway.status("h1-surge").startswith("DOWN"))
    finally:
        gateway.admin("set server qwen/h1-surge state maint")
        stand_in.stop()
        stand_in.tls = own
