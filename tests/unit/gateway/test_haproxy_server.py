"""The module haproxy_server on a real HAProxy with the role's own configuration."""

from __future__ import annotations

import http.client
import socket
import threading
from pathlib import Path

import pytest
from gateway_pair import until


@pytest.fixture
def module(run_module, gateway):
    """Runs it on the gateway."""

    def run(server="h1", backend="qwen", check=False, **parameters):
        given = {"backend": backend, "server": server, **gateway.sockets, **parameters}
        return run_module("haproxy_server", check=check, **given)

    return run


def hosts(gateway, count=8):
    return {gateway.ask("/v1/models").json["host"] for _ in range(count)}


def stream_on_h1(gateway, what):
    """A stream (events x pause in seconds) that h1 serves, with h2 in service as well."""
    gateway.admin("set server qwen/h2 state maint")
    stream = gateway.begin(f"/v1/stream/{what}")
    gateway.admin("set server qwen/h2 state ready")
    return stream


def events(stream):
    return stream.result(40).body.count(b"data:")


def test_a_drained_server_gets_nothing_and_a_second_run_changes_nothing(module, gateway):
    result = module(state="drain", wait_sessions=True, deadline_seconds=5)
    assert not result["failed"], result
    assert result["changed"]
    assert result["orders"] == ["set server qwen/h1 state drain", "set server qwen/h1-last state drain"]
    assert (result["before"]["state"], result["after"]["state"]) == ("ready", "drain")
    assert result["after"]["entries"] == ["h1", "h1-last"]
    assert hosts(gateway) == {"h2"}
    again = module(state="drain", wait_sessions=True)
    assert (again["failed"], again["changed"], again["orders"]) == (False, False, [])


def test_it_is_back_at_once_when_healthy_is_asked_for(module, gateway):
    module(state="maint")
    result = module(state="ready", healthy=True)
    assert not result["failed"], result
    assert (result["after"]["state"], result["after"]["status"]) == ("ready", "UP")
    assert hosts(gateway) == {"h1", "h2"}
    assert not module(state="ready", healthy=True)["changed"]


@pytest.mark.parametrize("state", ["drain", "maint"])
def test_an_instance_that_is_dead_is_not_taken_for_healthy(module, platform, state):
    """Neither the probe from before the maintenance nor a health that was set by hand counts."""
    module(state=state)
    platform.qwen["h1"].stop()
    if state == "drain":
        until(lambda: platform.gateways["gw1"].status("h1").startswith("DOWN"))
    result = module(state="ready", healthy=True, deadline_seconds=4)
    assert result["failed"]
    assert "qwen/h1 is " in result["msg"]
    assert "Its /ready and its journal say why" in result["msg"]


def test_an_ejected_server_is_taken_back_before_its_time(module, platform, gateway):
    platform.qwen["h1"].orders.add("unready")
    until(lambda: gateway.status("h1").startswith("DOWN"))
    platform.qwen["h1"].orders.clear()
    result = module(state="ready", healthy=True)
    assert not result["failed"], result
    assert result["orders"] == ["set server qwen/h1 health up"]
    assert result["after"]["status"] == "UP"


def test_the_wait_follows_the_sessions_and_ends_with_them(module, gateway, platform):
    stream = stream_on_h1(gateway, "8x0.5")
    result = module(state="drain", wait_sessions=True, deadline_seconds=30)
    assert not result["failed"], result
    assert [step["sessions"] for step in result["progress"]] == [1, 0]
    assert result["progress"][-1]["at_s"] <= result["waited_s"]
    assert events(stream) == 8


def test_at_the_deadline_it_says_how_many_are_left_and_what_to_do(module, gateway):
    stream = stream_on_h1(gateway, "80x0.1")
    result = module(state="drain", wait_sessions=True, deadline_seconds=0.5)
    assert result["failed"]
    assert result["changed"], "it is drained, and stays so"
    assert "qwen/h1: 1 sessions, 0 in its queue" in result["msg"]
    assert "shutdown sessions server qwen/h1" in result["msg"]
    assert result["after"]["sessions"] == 1
    gateway.admin("shutdown sessions server qwen/h1")
    assert module(wait_sessions=True)["after"]["sessions"] == 0
    with pytest.raises(http.client.IncompleteRead):
        stream.result(40)


def test_those_who_wait_in_its_queue_count(module, gateway):
    gateway.admin("set server qwen/h2 state maint; set maxconn server qwen/h1 1")
    first = gateway.begin("/v1/stream/3x0.5", X_DevMentor_Conversation="c")
    second = threading.Thread(target=gateway.ask, args=("/v1/models",), kwargs={"X_DevMentor_Conversation": "c"})
    second.start()
    try:
        until(lambda: gateway.stat("h1", "qcur") == "1")
        result = module(wait_sessions=True, deadline_seconds=10)
    finally:
        gateway.admin("set maxconn server qwen/h1 400")
        second.join()
    assert not result["failed"], result
    assert (result["progress"][0]["sessions"], result["progress"][0]["queue"]) == (1, 1)
    assert (result["after"]["sessions"], result["after"]["queue"], result["changed"]) == (0, 0, False)
    assert events(first) == 3


def test_weight(module):
    result = module(weight=50)
    assert (result["changed"], result["after"]["weight"]) == (True, 50)
    assert not module(weight=50)["changed"]
    assert "outside of 0..256" in module(weight=257)["msg"]


def test_check_mode_says_what_it_would_do_and_does_nothing(module, gateway):
    result = module(check=True, state="drain", wait_sessions=True)
    assert (result["failed"], result["changed"]) == (False, True)
    assert result["orders"] == ["set server qwen/h1 state drain", "set server qwen/h1-last state drain"]
    assert any("no session" in text for text in result["waits"])
    assert (result["before"]["state"], result["after"]["state"]) == ("ready", "drain")
    assert gateway.status("h1") == "UP"


def test_without_a_state_it_reads(module):
    result = module()
    assert (result["changed"], result["orders"]) == (False, [])
    assert result["before"] == result["after"]
    assert result["after"]["status"] == "UP"


def test_a_stand_in_joins_and_leaves(module, gateway, platform):
    platform.instances["qwen_surge", "h1"].start()
    assert module(server="h1-surge")["before"]["state"] == "maint"
    result = module(server="h1-surge", state="ready", healthy=True)
    assert not result["failed"], result
    assert result["after"]["entries"] == ["h1-surge"], "another port is another process"
    ports = {gateway.ask("/v1/models").json["port"] for _ in range(12)}
    assert ports == {platform.ports["qwen"], platform.ports["qwen_surge"]}
    module(server="h1-surge", state="maint", wait_sessions=True)
    assert {gateway.ask("/v1/models").json["port"] for _ in range(8)} == {platform.ports["qwen"]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"backend": "qwem"}, "There is no backend 'qwem' with servers. There are: pbml, qwen."),
        ({"server": "h9"}, "There is no server 'h9' in backend 'qwen'. There are: h1, h2, h3, h1-surge"),
    ],
)
def test_what_is_not_there_is_refused_with_the_names_that_are(module, names, message):
    for check in (False, True):
        result = module(check=check, state="drain", **names)
        assert result["failed"]
        assert message in result["msg"]


def test_it_refuses_while_a_worker_of_an_earlier_reload_serves(module, gateway):
    stream = gateway.begin("/v1/stream/60x0.1")
    gateway.reload()
    for wish in ({"state": "drain"}, {"state": "maint"}, {"wait_sessions": True, "deadline_seconds": 0.2}):
        result = module(**wish)
        assert result["failed"], wish
        assert not result["changed"]
        assert "a worker of an earlier reload still serves (pid " in result["msg"]
        assert "nothing was changed" in result["msg"]
    assert gateway.status("h1") == "UP"
    assert not module(state="ready")["failed"], "what takes nothing away need not wait"
    result = module(state="drain", old_worker_seconds=40)
    assert not result["failed"], result
    assert events(stream) == 60


def test_a_reload_during_the_wait_hides_no_session(module, gateway):
    stream = stream_on_h1(gateway, "60x0.1")
    timer = threading.Timer(0.3, gateway.reload)
    timer.start()
    result = module(state="drain", wait_sessions=True, deadline_seconds=40)
    timer.join()
    assert not result["failed"], result
    assert any(step["old_workers"] for step in result["progress"])
    assert events(stream) == 60


def test_a_socket_without_haproxy_is_an_error(module, tmp_path):
    result = module(state="drain", socket=str(tmp_path / "none.sock"))
    assert result["failed"]
    assert "none.sock" in result["msg"]
    assert "Is haproxy.service running" in result["msg"]
    result = module(state="drain", master_socket=str(tmp_path / "none.sock"))
    assert result["failed"], "who cannot ask for old workers does not know that there is none"
    assert not result["changed"]


class Impostor:
    """A socket that answers each command with the same text: what an unknown HAProxy might say."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.path, self.answer = path, answer
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(1000)
                connection.sendall(self.answer)


PROC = b"#<PID> <type> <reloads> <uptime>\n1 master 0 [failed: 0] 0d00h 3.0\n# workers\n2 worker 0 0d00h 3.0\n"


@pytest.mark.parametrize(
    ("which", "answer"),
    [
        ("socket", b""),
        ("socket", b"Permission denied\n\n"),
        ("socket", b"2\n# be_name srv_name\nqwen h1\n\n"),
        ("socket", b"1\n# be_name srv_name\nqwen h1\n\n"),
        ("master_socket", b"\n"),
        ("master_socket", b"Permission denied\n\n"),
        ("master_socket", PROC),  # cut off before the old workers
        ("master_socket", PROC.replace(b"# workers\n2 worker 0 0d00h 3.0\n", b"\n")),
        ("master_socket", PROC + b"# new kind of section\n3 worker\n\n"),
        ("master_socket", PROC + b"# old workers\nworker\n\n"),
    ],
)
def test_a_faked_answer_that_cannot_be_read_is_an_error(module, tmp_path, which, answer):
    impostor = Impostor(tmp_path / "impostor.sock", answer)
    result = module(state="drain", **{which: str(impostor.path)})
    impostor.socket.close()
    assert result["failed"]
    assert not result["changed"]
    assert "cannot be read" in result["msg"] or "without a whole answer" in result["msg"]
