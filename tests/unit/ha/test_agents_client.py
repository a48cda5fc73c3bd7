"""The client of the agents against fake ones: what it proves of the other end, and that nothing holds a call."""

import time
from pathlib import Path

import pytest

from module_utils.devmentor_ha.client import AgentError, Client, read_cluster, read_env
from tests.unit.ha import fake_agent

ONE = {"pg1": "127.0.0.1"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return fake_agent.authority_in(tmp_path_factory.mktemp("ha-client"))


@pytest.fixture(scope="module")
def files(authority):
    return fake_agent.certificate_files(authority)


def client(nodes, port, files, token=fake_agent.TOKEN):
    return Client(nodes, port, token, **files)


def test_answers_and_what_was_asked(authority, files):
    with fake_agent.running(authority) as agent:
        agent.answers = {"status": (200, {"node": "pg1"}), "fence": (200, {"lsn": 7})}
        caller = client(ONE, agent.port, files)
        assert caller.get("pg1", "status", 5) == {"node": "pg1"}
        assert caller.post("pg1", "fence", {"epoch": 2}, 5) == {"lsn": 7}
        assert agent.asked == [("status", None), ("fence", {"epoch": 2})]


def test_a_refusal_has_the_agents_words_its_status_and_its_body(authority, files):
    with fake_agent.running(authority) as agent:
        agent.answers["fence"] = (409, {"error": {"code": "promised", "message": "pg1 promised 4 to pg2/ab"}})
        with pytest.raises(AgentError, match="pg1: pg1 promised 4 to pg2/ab") as raised:
            client(ONE, agent.port, files).post("pg1", "fence", {}, 5)
    assert (raised.value.node, raised.value.status) == ("pg1", 409)
    assert raised.value.body["error"]["code"] == "promised"


def test_a_wrong_token_is_refused_and_not_shown(authority, files):
    with fake_agent.running(authority) as agent, pytest.raises(AgentError, match="token is another one") as raised:
        client(ONE, agent.port, files, token="not-the-token").get("pg1", "status", 5)
    assert raised.value.status == 401
    assert "not-the-token" not in str(raised.value)


def test_answers_go_to_the_node_that_gave_them_and_the_silent_are_failures(authority, files):
    with fake_agent.running(authority) as agent:
        agent.answers["status"] = (200, {"node": "pg1"})
        caller = client({**ONE, "pg2": "127.0.0.2"}, agent.port, files)
        answers, failures = caller.fan_out(["pg1", "pg2", "pg9"], "status", None, 5)
    assert answers == {"pg1": {"node": "pg1"}}
    assert set(failures) == {"pg2", "pg9"}
    assert "systemctl start pgagent" in str(failures["pg2"])
    assert "has no agent; there are pg1, pg2" in str(failures["pg9"])
    assert caller.fan_out([], "status", None, 5) == ({}, {})


def test_the_address_must_be_in_the_certificate(authority, files):
    with fake_agent.running(authority, "127.0.0.3") as agent:
        agent.answers["status"] = (200, {})
        with pytest.raises(AgentError, match=r"127\.0\.0\.3.*site\.yml --tags pki") as raised:
            client({"pg1": "127.0.0.3"}, agent.port, files).get("pg1", "status", 5)
    assert raised.value.status == 0
    assert agent.asked == []


def test_another_ca_is_nobody_on_either_side(authority, files, tmp_path: Path):
    stranger = fake_agent.authority_in(tmp_path)
    with fake_agent.running(stranger) as impostor, pytest.raises(AgentError, match="certificate verify failed"):
        client(ONE, impostor.port, files).get("pg1", "status", 5)
    unknown = {**fake_agent.certificate_files(stranger), "ca": files["ca"]}
    with fake_agent.running(authority) as agent:
        with pytest.raises(AgentError) as raised:
            client(ONE, agent.port, unknown).get("pg1", "status", 5)
        assert agent.asked == []
    assert raised.value.status == 0


@pytest.mark.parametrize("after", ["accept", "request", "headers", "body"])
def test_an_agent_that_is_stuck_or_answers_for_ever_holds_no_call(authority, files, after):
    with fake_agent.stuck(authority, after) as port:
        began = time.monotonic()
        with pytest.raises(AgentError, match=r"no answer to status in 0\.4 s"):
            client(ONE, port, files).get("pg1", "status", 0.4)
        assert 0.3 < time.monotonic() - began < 1.5


@pytest.mark.parametrize("answer", [[], "status", None])
def test_what_is_no_object_is_no_answer(authority, files, answer):
    with fake_agent.running(authority) as agent:
        agent.answers["status"] = (200, answer)
        with pytest.raises(AgentError, match="no object"):
            client(ONE, agent.port, files).get("pg1", "status", 5)


def test_the_files_of_a_host(tmp_path: Path):
    cluster = tmp_path / "cluster.json"
    cluster.write_text('{"postgres": {"pg1": {"address": "10.0.0.1", "priority": 1}}}')
    assert read_cluster(str(cluster)) == {"postgres": {"pg1": {"address": "10.0.0.1", "priority": 1}}, "pgbouncer": {}}
    env = tmp_path / "pgagent.env"
    lines = ["# Managed", "", "NODE=pg1", r'RESTORE="get %f \"%p\" a=b"', "EMPTY=", "ONE='a \"b'"]
    env.write_text("\n".join(lines) + "\n")
    assert read_env(env) == {
        "NODE": "pg1", "RESTORE": 'get %f "%p" a=b', "EMPTY": "", "ONE": 'a "b'
    }  # fmt: skip
