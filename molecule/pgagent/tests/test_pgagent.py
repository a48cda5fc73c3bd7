"""The agent of every host: who may ask it, what it may do as root, and what stands before a start of PostgreSQL."""

from scenario import CLIENT, TLS, address, members, name, sql

testinfra_hosts = ["postgres"]

POSTGRES = "postgresql@17-main.service"
SYSTEMCTL = "/usr/bin/systemctl"
AGENT = "/opt/devmentor/pgagent/current/bin/devmentor-pgagent"
ENV = "/etc/devmentor/pgagent/pgagent.env"
AS_POSTGRES = "cd / && setpriv --reset-env --reuid=postgres --regid=postgres --init-groups"


def leader(host):
    nodes = members(host, "postgres").items()
    [found] = [each for each, peer in nodes if sql(peer, "SELECT pg_is_in_recovery()") == "f"]
    return found


def test_the_unit_is_watched_and_outlives_a_crowded_host(host):
    unit = host.service("pgagent")
    assert unit.is_running
    assert unit.is_enabled
    shown = unit.systemd_properties
    wanted = {
        "Type": "notify", "User": "postgres", "WatchdogUSec": "10s", "OOMScoreAdjust": "-900", "CPUWeight": "1000",
        "Slice": "system.slice", "ProtectSystem": "strict", "NoNewPrivileges": "no", "Restart": "always",
    }
    assert {key: shown[key] for key in wanted} == wanted
    assert host.file("/var/lib/devmentor/pgagent").mode == 0o750


def test_every_agent_knows_the_first_rule_and_its_leader(host, ask):
    assert ask("/health").status == 200
    assert ask("/ready").status == 200
    status = ask("/v1/status").json
    first = leader(host)
    followers = sorted(set(members(host, "postgres")) - {first})
    assert status["node"] == name(host)
    assert sorted(status["duties"]) == ["pgbouncer", "postgres"]
    rule = status["committed"]
    assert (rule["epoch"], rule["leader"], rule["followers"]) == (1, first, followers)
    assert status["suspects"] is None
    assert (status["pooler"]["leader"], status["pooler"]["state"]) == (first, "running")
    assert ask("/primary").status == (200 if name(host) == first else 503)
    assert ask("/replica").status == (503 if name(host) == first else 200)


def test_the_metrics_say_who_leads(host, ask):
    metrics = ask("/metrics").text
    assert f"devmentor_pgagent_leading {1.0 if name(host) == leader(host) else 0.0}\n" in metrics
    assert "devmentor_pgagent_epoch 1.0\n" in metrics


def test_without_certificate_or_token_nothing_is_told(host, ask):
    url = f"{address(host)}:5440/v1/status"
    assert host.run(f"curl --silent --max-time 10 http://{url}").rc in (52, 56)
    assert host.run(f"curl --silent --max-time 10 {TLS} https://{url}").rc == 56
    assert host.run(f"curl --silent --max-time 10 {CLIENT} --tls-max 1.1 https://{url}").rc == 35
    for authorization in (None, "Authorization: Bearer wrong", "Authorization: Bearer"):
        assert ask("/v1/status", authorization=authorization).status == 401
        assert ask("/v1/pause", {"until": 0}, authorization=authorization).status == 401


def test_the_token_is_readable_by_the_agent_only(host, ask):
    for file in map(host.file, ("/etc/devmentor/pgagent/token", ENV, "/etc/devmentor/pgagent/cluster.json")):
        assert (file.user, file.group, file.mode) == ("root", "postgres", 0o640)
    token = host.ansible.get_variables()["vault_pgagent_token"]
    assert host.file("/etc/devmentor/pgagent/token").content_string.strip() == token
    assert token not in host.file(ENV).content_string
    assert token not in ask("/v1/status").text


def test_postgres_may_start_and_stop_its_server_as_root_and_nothing_else(host):
    assert host.file("/etc/sudoers.d/devmentor-pgagent").mode == 0o440
    host.check_output("visudo -c")
    listed = host.check_output(f"{AS_POSTGRES} sudo -n -l")
    allowed = listed.partition("may run the following commands")[2].partition("\n")[2].split("\n")
    commands = [word.strip() for line in allowed for word in line.partition("NOPASSWD:")[2].split(",") if word.strip()]
    verbs = ("start --no-block", "stop --no-block", "reset-failed")
    assert commands == [f"{SYSTEMCTL} {verb} {POSTGRES}" for verb in verbs]
    assert listed.count("(root)") == 1
    assert host.run(f"{AS_POSTGRES} sudo -n {SYSTEMCTL} reset-failed {POSTGRES}").rc == 0
    start = "start --no-block"
    for words in ("stop --no-block ssh.service", f"{start} ssh.service", f"{start} {POSTGRES} ssh.service"):
        assert "a password is required" in host.run(f"{AS_POSTGRES} sudo -n {SYSTEMCTL} {words}").stderr


def test_the_guard_stands_before_every_start(host):
    shown = host.service("postgresql@17-main").systemd_properties
    assert f"{AGENT} guard --env-file {ENV}" in shown["ExecStartPre"]
    assert shown["TimeoutStartUSec"] == "3min"
    assert shown["NeedDaemonReload"] == "no"
    assert host.run(f"{AS_POSTGRES} {AGENT} guard --env-file {ENV}").rc == 0

