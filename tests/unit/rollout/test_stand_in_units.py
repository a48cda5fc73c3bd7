"""What a stand-in must not share with the service that it stands in for: names, ports and directories."""

import re
from itertools import pairwise
from pathlib import Path

import jinja2
import pytest
import yaml

ROLES = Path(__file__).parents[3] / "roles"
ENVIRONMENTS = {"pbml": "pbml.env.j2", "qwen": "environment.j2"}


def command(app: str) -> list[str]:
    """The start of the stand-in's unit, in words."""
    given = yaml.safe_load((ROLES / app / "vars/main.yml").read_text())
    ports = yaml.safe_load((ROLES / "platform/defaults/main/ports.yml").read_text())["devmentor_ports"]
    known = {"devmentor_ports": ports, "inventory_hostname": "h1", f"__{app}_surge_release": "/releases/surge"}
    template = jinja2.Template(given[f"__{app}_stand_in"]["program"], undefined=jinja2.StrictUndefined)
    return template.render(known).split()


def settings(app: str) -> set[str]:
    """Names of all settings that the role may write."""
    text = (ROLES / app / "templates" / ENVIRONMENTS[app]).read_text()
    return set(re.findall(rf"^({app.upper()}_\w+)=", text, re.MULTILINE))


@pytest.mark.parametrize("app", ENVIRONMENTS)
def test_a_directory_of_the_services_own_is_not_the_stand_ins(app: str) -> None:
    taken_away = {name for flag, name in pairwise(command(app)) if flag == "-u"}
    assert taken_away == {name for name in settings(app) if name.endswith("_DIR")}


@pytest.mark.parametrize(
    ("app", "name", "port"), [("pbml", "PBML_REPLICA", "PBML_PORT=8089"), ("qwen", "QWEN_INSTANCE", "QWEN_PORT=8079")]
)
def test_it_has_a_name_and_a_port_of_its_own(app: str, name: str, port: str) -> None:
    words = command(app)
    assert (words[0], words[-1]) == ("/usr/bin/env", f"/releases/surge/bin/devmentor-{app}")
    assert {f"{name}=h1-surge", port} <= set(words)
    assert {name, f"{app.upper()}_PORT"} <= settings(app), "these are what the stand-in overrides"
