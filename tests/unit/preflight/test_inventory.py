"""What preflight says about an inventory, without Ansible and without hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from module_utils.devmentor import inventory_view, preflight
from module_utils.devmentor.platform_model import GROUP_SIZES, ROLE_GROUPS, Host, Platform
from module_utils.devmentor.preflight_expectations import expectations
from module_utils.devmentor.preflight_problems import render

ROOT = Path(__file__).resolve().parents[3]

GROUPS = {
    "gateway": ["h1", "h2"],
    "qwen": ["h1", "h2", "h3"],
    "pbml": ["h2", "h3", "h4"],
    "cache": ["h3", "h4"],
    "qdrant": ["h1", "h2", "h3"],
    "postgres": ["h1", "h2", "h3", "h4"],
    "pgbouncer": ["h2", "h3"],
    "monitoring": ["h1", "h4"],
}
ZONES = {"h1": "a", "h2": "b", "h3": "c", "h4": "b"}
SPECS = {
    "platform": {"devmentor_vip": {"type": "str"}, "devmentor_resource_scale": {"type": "float"}},
    "qdrant": {
        "qdrant_shards": {"type": "int", "description": "Number of shards. Range: 1..64."},
        "qdrant_log_level": {"type": "str", "choices": ["INFO", "WARN"]},
        "qdrant_api_key": {"type": "int", "no_log": True},
        "qdrant_admin_port": {"type": "int"},
        "qdrant_names": {"type": "list", "elements": "str"},
    },
}


def platform(
    groups: dict[str, list[str]] | None = None,
    specs: dict[str, Any] | None = None,
    secrets: dict[str, frozenset[str]] | None = None,
    errors: dict[str, str] | None = None,
    per_host: dict[str, dict[str, Any]] | None = None,
    **variables: Any,
) -> Platform:
    """A platform that passes, with the given changes; a variable is set on every host."""
    groups = GROUPS if groups is None else groups
    names = sorted({host for members in groups.values() for host in members})
    hosts = {}
    for index, name in enumerate(names):
        given = {**variables, **(per_host or {}).get(name, {})}
        values = {
            "zone": ZONES.get(name, "a"),
            "devmentor_address": f"10.0.0.{index + 1}",
            "devmentor_vip": "10.0.0.100",
            "devmentor_ports": {"ssh": 22, "qdrant_http": 6333},
            "postgres_bootstrap_primary": "h1",
            **given,
        }
        mine = tuple(group for group, members in groups.items() if name in members)
        hosts[name] = Host(name, mine, values, frozenset(given), errors or {})
    return Platform(hosts, groups, SPECS if specs is None else specs, secrets or {})


def lines(checked: Platform) -> list[str]:
    return render(preflight.inspect(checked), list(checked.hosts)).splitlines()


def only(checked: Platform) -> str:
    """The one problem that there is."""
    found = lines(checked)
    assert len(found) == 1, found
    return found[0]


def test_a_complete_platform_has_no_problem() -> None:
    assert lines(platform()) == []


@pytest.mark.parametrize("group", ["gateway", "qwen", "pbml", "cache", "qdrant", "postgres", "pgbouncer", "monitoring"])
def test_a_group_below_its_size_is_refused_unless_small_is_allowed(group: str) -> None:
    groups = {**GROUPS, group: GROUPS[group][:-1]}
    message = next(line for line in lines(platform(groups)) if f"group {group}:" in line)
    assert f"has {len(GROUPS[group]) - 1} hosts, the platform needs {len(GROUPS[group])}" in message
    allowed = lines(platform(groups, devmentor_allow_small=True, specs={"platform": {"devmentor_allow_small": {}}}))
    assert allowed == []


def test_a_group_above_its_size_is_refused_even_where_small_is_allowed() -> None:
    checked = platform(
        {**GROUPS, "cache": ["h1", "h3", "h4"]},
        devmentor_allow_small=True,
        specs={"platform": {"devmentor_allow_small": {"type": "bool"}}},
    )
    assert only(checked) == (
        "h1,h3,h4: group cache: has 3 hosts, at most 2 are supported. "
        "Remedy: take 1 out of cache in inventories/lab/hosts.yml."
    )


def test_groups_that_exclude_each_other() -> None:
    message = only(platform({**GROUPS, "qwen_standby": ["h3"]}))
    assert message.startswith("h3: groups qwen and qwen_standby: exclude each other")
    assert "Remedy: leave h3 in one of them." in message
    assert "spare and gateway, qwen" in only(platform({**GROUPS, "spare": ["h1"]}))


def test_a_host_in_no_group_of_the_platform_gets_the_close_match() -> None:
    message = only(platform({**GROUPS, "qdrent": ["h9"]}))
    assert message.startswith("h9: groups: is in no group of the platform (did you mean qdrant?)")


def test_every_host_has_a_zone() -> None:
    assert only(platform(per_host={"h2": {"zone": ""}})).startswith("h2: zone: is not set. Remedy: ")


@pytest.mark.parametrize(
    ("zones", "message"),
    [
        ({"h4": "a"}, "h1,h4: zones of group monitoring: 2 of 2 hosts are in a: its loss takes the whole tier"),
        ({"h1": "b", "h4": "a"}, "h1,h2: zones of group qdrant: 2 of 3 hosts are in b: a zone with two peers"),
        ({"h3": "b"}, "h2,h3,h4: zones of group postgres: 3 of 4 hosts are in b: a zone with most nodes"),
    ],
)
def test_no_zone_may_take_a_tier_or_a_quorum_with_it(zones: dict[str, str], message: str) -> None:
    found = lines(platform(per_host={host: {"zone": zone} for host, zone in zones.items()}))
    assert any(line.startswith(message) for line in found), found


def test_the_bootstrap_primary_is_a_postgres_host_and_one_for_all() -> None:
    assert "is 'h11', which is not in group postgres (did you mean h1?)" in only(
        platform(postgres_bootstrap_primary="h11", specs={"postgres": {"postgres_bootstrap_primary": {}}})
    )
    different = platform(
        specs={"postgres": {"postgres_bootstrap_primary": {}}},
        per_host={"h1": {"postgres_bootstrap_primary": "h2"}, "h2": {"postgres_bootstrap_primary": "h3"}},
    )
    assert "differs between the hosts: h1, h2, h3" in only(different)


def test_addresses_and_ports_are_unique() -> None:
    clash = platform(per_host={"h2": {"devmentor_address": "10.0.0.1"}}, specs={"platform": {"devmentor_address": {}}})
    assert only(clash).startswith("h1,h2: devmentor_address: 10.0.0.1 is the address of more than one host.")
    ports = platform(devmentor_ports={"qwen": 8080, "pbml": 8080}, specs={"platform": {"devmentor_ports": {}}})
    assert only(ports).startswith("all hosts: devmentor_ports: qwen and pbml have the same port 8080.")


@pytest.mark.parametrize(
    ("vip", "message"),
    [
        ("", "h1,h2: devmentor_vip: is not set."),
        ("gateway.example", "h1,h2: devmentor_vip: is 'gateway.example', not an address."),
        ("10.0.0.3", "h3: devmentor_vip: 10.0.0.3 is the host's own address."),
    ],
)
def test_the_virtual_address_must_be_free_and_an_address(vip: str, message: str) -> None:
    assert only(platform(devmentor_vip=vip)).startswith(message)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"qdrant_shards": "six"}, "qdrant_shards: 'six' is str, not int. Remedy: give it a value of type int."),
        ({"qdrant_shards": 0}, "qdrant_shards: 0 is outside of 1 to 64. Remedy: give it a value from 1 to 64."),
        ({"qdrant_admin_port": 70000}, "qdrant_admin_port: 70000 is outside of 1 to 65535."),
        ({"qdrant_log_level": "LOUD"}, "qdrant_log_level: 'LOUD' is not one of INFO, WARN. Remedy: give it one of"),
        ({"qdrant_names": {"a": 1}}, "qdrant_names: {'a': 1} is dict, not list of str."),
        ({"qdrant_shard": 6}, "qdrant_shard: is a variable that no role knows (did you mean qdrant_shards?)."),
        ({"qdrant_zzz": 6}, "qdrant_zzz: is a variable that no role knows. Remedy: remove it;"),
        ({"qdrantt_shards": 6}, "qdrantt_shards: is a variable that no role knows (did you mean qdrant_shards?)."),
    ],
)
def test_a_wrong_variable_is_named_with_its_remedy(variables: dict[str, Any], message: str) -> None:
    assert only(platform(**variables)).startswith(f"all hosts: {message}")


def test_values_that_convert_and_variables_of_others_are_left_alone() -> None:
    assert lines(platform(qdrant_shards="6", ansible_user="root", lab_suite="trixie", site_contact="ops")) == []


def test_a_secret_is_never_shown() -> None:
    message = only(platform(qdrant_api_key="s3cr3t-value"))
    assert "s3cr3t" not in message
    assert message.startswith("all hosts: qdrant_api_key: its value is str, not int.")
    hidden = platform(qdrant_shards="s3cr3t-value")
    names = frozenset({"qdrant_shards"})
    hosts = {name: dataclasses.replace(host, hidden=names) for name, host in hidden.hosts.items()}
    assert "s3cr3t" not in only(dataclasses.replace(hidden, hosts=hosts))


def test_a_variable_on_one_host_names_that_host() -> None:
    assert only(platform(per_host={"h2": {"qdrant_shards": "six"}})).startswith("h2: qdrant_shards: ")


def test_a_required_variable_is_asked_for_on_its_hosts_only() -> None:
    checked = platform(specs={"cache": {"cache_memory": {"type": "int", "required": True}}})
    assert only(checked).startswith("h3,h4: cache_memory: is not set, and role cache needs it.")


def test_what_cannot_be_evaluated_before_facts_is_not_judged() -> None:
    reason = "object of type 'dict' has no attribute 'memtotal_mb'"
    later = platform(qdrant_shards="x", errors={"qdrant_shards": reason})
    assert lines(later) == []
    wrong = platform(qdrant_shards="x", errors={"qdrant_shards": "'shardes' is undefined"})
    assert "qdrant_shards: refers to shardes, which is not defined." in only(wrong)


def test_missing_secrets_are_one_problem_with_the_command_that_makes_them() -> None:
    secrets = {"qdrant": frozenset({"vault_qdrant_api_key"}), "pki": frozenset({"vault_ca_key"})}
    assert only(platform(secrets=secrets)) == (
        "all hosts: vault_ca_key, vault_qdrant_api_key: the secrets are missing. "
        "Remedy: make secrets INVENTORY=inventories/lab (it adds what is missing and keeps what is there)."
    )
    one = platform(secrets={"qdrant": frozenset({"vault_qdrant_api_key"})}, vault_qdrant_apikey="x")
    assert only(one).startswith(
        "h1,h2,h3: vault_qdrant_api_key: the secret is missing; vault_qdrant_apikey is set, a misspelling of"
    )


def test_a_secret_that_an_inventory_variable_refers_to_is_missing_as_well() -> None:
    checked = platform(qdrant_shards="x", errors={"qdrant_shards": "'vault_other' is undefined"})
    assert only(checked).startswith("all hosts: vault_other: the secret is missing.")


def test_vault_references_with_a_default_are_not_required() -> None:
    text = 'a: "{{ vault_a }}"\nb: "{{ vault_b | default(\'\') }}"\nc: "{{ vault_c|default(omit) }}"\n'
    assert inventory_view.vault_references(text) == frozenset({"vault_a"})


def test_an_artefact_needs_its_checksum() -> None:
    entry = {"version": "1", "sources": [{"from": "https://example.org/q.tar.gz", "member": "q", "sha256": "a" * 64}]}
    message = only(platform(devmentor_artifacts={"q": entry}, specs={"platform": {"devmentor_artifacts": {}}}))
    assert message.startswith("all hosts: devmentor_artifacts.q: the entry has no sha256. Remedy: Add the sha256 of")


def test_an_artefact_that_a_role_installs_is_declared() -> None:
    entry = {"version": "1", "sha256": "a" * 64, "sources": [{"from": "file:q", "sha256": "a" * 64}]}
    specs = {"platform": {"devmentor_artifacts": {}}, "qdrant": {"qdrant_artifact": {"type": "str"}}}
    assert only(platform(qdrant_artifact="qdrent", devmentor_artifacts={"qdrant": entry}, specs=specs)).startswith(
        "h1,h2,h3: qdrant_artifact: names the artefact qdrent, which is not declared (did you mean qdrant?)."
    )
    assert lines(platform(qdrant_artifact="qdrant", devmentor_artifacts={"qdrant": entry}, specs=specs)) == []


def test_all_problems_come_at_once() -> None:
    found = lines(platform({**GROUPS, "spare": ["h1"]}, qdrant_shards="six", devmentor_vip=""))
    assert len(found) == 3


def test_what_a_host_must_offer_is_the_sum_of_its_groups() -> None:
    host = platform(
        devmentor_resource_scale=0.5,
        devmentor_resources={
            "qdrant": {"cpu_min": 4, "memory_min_gib": 16},
            "qwen": {"cpu_min": 2, "memory_min_gib": 8},
            "postgres": {"cpu_min": 4, "memory_min_gib": 16},
        },
        devmentor_disk_minimum=[
            {"path": "/", "free_gib": 1},
            {"path": "/var/lib/devmentor", "capacity_gib": 100, "groups": ["pbml"]},
        ],
        devmentor_communication_matrix=[
            {"to": "all", "ports": ["ssh"], "from": ["control"]},
            {"to": "qdrant", "ports": ["qdrant_http"], "from": ["self"]},
        ],
        devmentor_footprint={"all": {"units": ["devmentor-*"]}, "qdrant": {"units": ["qdrant.service"]}},
    ).hosts
    expected = expectations(host["h2"])
    assert sum(need["cores"] for need in expected["needs"]) == 5
    assert sum(need["memory_gib"] for need in expected["needs"]) == 20
    assert expected["disks"] == [
        {"path": "/", "free_gib": 1.0, "capacity_gib": 0.0},
        {"path": "/var/lib/devmentor", "free_gib": 0.0, "capacity_gib": 50.0},
    ]
    assert expected["ports"] == {"6333/tcp": "qdrant_http"}
    assert expected["units"] == ["devmentor-*", "qdrant.service"]
    assert expected["vip"] == "10.0.0.100"
    assert expected["debian"] == ["13"]
    assert expectations(host["h4"])["ports"] == {}


@pytest.fixture(scope="module")
def ports_of() -> Callable[..., dict[str, str]]:
    """Group names -> the ports that preflight checks on a host of them, with the roles' own defaults."""
    loader = DataLoader()
    templar = Templar(loader=loader)

    def template(values: Any, value: Any) -> Any:
        return templar.copy_with_new_env(available_variables=values).template(value)

    def load(path: str) -> Any:
        return loader.load_from_file(path, trusted_as_template=True)

    roles = inventory_view.load_roles(ROOT / "roles", load)

    def ports(*groups: str, **given: Any) -> dict[str, str]:
        raw = {"group_names": list(groups), **given}
        found: dict[str, str] = expectations(inventory_view.host_view("h", raw, roles, {}, template))["ports"]
        return found

    return ports


def test_every_port_that_a_role_binds_is_checked(ports_of: Callable[..., dict[str, str]]) -> None:
    declared = yaml.safe_load((ROOT / "roles/platform/defaults/main/ports.yml").read_text())["devmentor_ports"]
    checked = ports_of(*GROUP_SIZES)
    bound = set(declared) - {"ssh"}
    assert set(checked.values()) == bound
    assert {int(port.partition("/")[0]) for port in checked} == {declared[name] for name in bound}


def test_engines_are_checked_on_the_hosts_that_run_them(ports_of: Callable[..., dict[str, str]]) -> None:
    engines = {"8081/tcp": "llamacpp_chat", "8082/tcp": "llamacpp_embed"}
    assert engines.items() <= ports_of("qwen").items()
    assert ports_of("qwen_standby") == ports_of("qwen"), "a host that may take the place of another needs its ports"
    assert "8082/tcp" in ports_of("pbml")
    assert "8081/tcp" not in ports_of("pbml")
    moved = ports_of("qwen", llamacpp_instances={"code": {"groups": ["qwen"], "port": 8084}, "broken": None})
    assert moved["8084/tcp"] == "llamacpp_code"
    assert not engines.keys() & moved.keys()


def test_gpus_are_looked_at_where_vllm_runs_on_them() -> None:
    values = {"vllm_device": "cuda", "vllm_cuda": "13.0", "vllm_require_ecc": True, "vllm_accepted_xids": [63]}
    asked = expectations(Host("g", ("qwen", "vllm"), values))["gpu"]
    assert asked == {"cuda": "13.0", "ecc": True, "accepted_xids": [63]}
    assert expectations(Host("g", ("qwen",), values))["gpu"] is None
    assert expectations(Host("g", ("qwen", "vllm"), {**values, "vllm_device": "cpu"}))["gpu"] is None


def test_an_engine_that_nobody_could_ask_is_refused() -> None:
    (line,) = lines(platform(groups={**GROUPS, "vllm": ["h1", "h4"]}))
    assert line.startswith("h4: group vllm: has a host without QWEN")
    assert lines(platform(groups={**GROUPS, "vllm": ["h1"]})) == []


def test_gpu_hosts_have_a_model() -> None:
    (line,) = lines(platform({**GROUPS, "vllm": ["h1"]}, per_host={"h1": {"vllm_artifacts": []}},
                             specs={"vllm": {"vllm_artifacts": {"type": "list", "elements": "str"}}}))  # fmt: skip
    assert line.startswith("h1: vllm_artifacts: is empty")


def test_every_file_of_a_model_is_declared() -> None:
    specs = {
        "platform": {"devmentor_artifacts_generated": {"type": "dict"}},
        "vllm": {"vllm_artifacts": {"type": "list", "elements": "str"}},
    }
    declared = {"devmentor_artifacts_generated": {"m-config": {"version": "1", "sha256": "0" * 64,
                "sources": [{"from": "file:m", "sha256": "0" * 64}]}}}  # fmt: skip
    names = {"vllm_artifacts": ["m-config", "m-confg"]}
    groups = {**GROUPS, "vllm": ["h1"]}
    found = lines(platform(groups, specs, per_host={"h1": {**declared, **names}}))
    assert [line for line in found if "m-confg" in line and "did you mean m-config" in line]
    assert len(found) == 1


def test_a_port_is_checked_for_each_of_its_protocols(ports_of: Callable[..., dict[str, str]]) -> None:
    assert {"9094/tcp", "9094/udp"} <= ports_of("monitoring").keys()
    assert not {"9094/tcp", "9094/udp"} & ports_of("cache").keys()


def test_debian_12_is_for_hosts_of_the_engine_tier_alone() -> None:
    for groups in (("spare",), ("qwen",), ("qwen", "vllm"), ("qwen_standby", "vllm")):
        assert expectations(Host("g", groups, {}))["debian"] == ["12", "13"]
    assert expectations(Host("g", ("qwen", "pbml"), {}))["debian"] == ["13"]
    assert expectations(Host("g", ("qwen", "qdrant"), {}))["debian"] == ["13"]


def test_every_role_is_on_hosts_that_preflight_knows() -> None:
    roles = {path.name for path in (ROOT / "roles").iterdir() if (path / "defaults").is_dir()}
    known = set(ROLE_GROUPS) | set(GROUP_SIZES)
    # What others call with parameters, and what rolls over all hosts, is on none of its own.
    assert roles - known <= {"python_release", "rollout"}


def test_the_roles_own_files_are_read(tmp_path: Path) -> None:
    role = tmp_path / "thing"
    for folder in ("meta", "defaults/main"):
        (role / folder).mkdir(parents=True)
    (role / "meta" / "argument_specs.yml").write_text(
        "argument_specs: {main: {options: {thing_size: {type: int}}}, other: {options: {thing_other: {type: str}}}}"
    )
    (role / "defaults" / "main" / "a.yml").write_text("thing_size: 3\nthing_key: '{{ vault_thing }}'\n")
    roles = inventory_view.load_roles(tmp_path, lambda path: yaml.safe_load(Path(path).read_text()))
    assert set(roles.specs["thing"]) == {"thing_size", "thing_other"}
    assert roles.defaults["thing_size"] == 3
    assert roles.secrets["thing"] == frozenset({"vault_thing"})
