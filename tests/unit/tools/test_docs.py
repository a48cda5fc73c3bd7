"""Generated tables follow their sources, and --check notices when they do not."""

from __future__ import annotations

import pytest
import yaml

from tools.docs import ROOT, DocsError, main, replaced, tag_table, variable_table

SPECS = """---
argument_specs:
  main:
    short_description: A role
    options:
      demo_port:
        description: Where it listens.
        type: int
        default: 80
      demo_users:
        description:
          - Who may use it.
          - Empty for nobody.
        type: list
        elements: dict
        default: []
        options:
          name:
            description: a | b
            required: true
"""




def role(name, *tags):
    return {"name": name, "ansible.builtin.import_role": {"name": name}, "tags": list(tags)}


SITE = [
    {"name": "Preflight", "ansible.builtin.import_playbook": "preflight.yml"},
    {"name": "Demo", "hosts": "web:standby:!offline", "tasks": [role("demo", "demo", "all-of-it")]},
    {"name": "Watch", "hosts": "all:!offline", "tasks": [role("watch", "watch", "all-of-it")]},
]


@pytest.fixture
def tree(tmp_path):
    role, data, docs = tmp_path / "roles" / "demo", tmp_path / "roles" / "platform", tmp_path / "docs"
    for folder in (role / "meta", role / "tasks", data / "defaults" / "main", docs):
        folder.mkdir(parents=True)
    (role / "meta" / "argument_specs.yml").write_text(SPECS)
    (role / "README.md").write_text("# demo\n\nwords\n\n<!-- variables: begin -->\n<!-- variables: end -->\n\nmore\n")
    (data / "defaults" / "main" / "ports.yml").write_text("devmentor_ports: {web: 443}\n")
    rows = "devmentor_communication_matrix:\n  - {to: gateway, ports: [web], from: [any, self]}\n"
    (data / "defaults" / "main" / "network.yml").write_text(rows)
    (docs / "from-lab-to-production.md").write_text("<!-- tags: begin -->\n<!-- tags: end -->\n")
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "site.yml").write_text(yaml.safe_dump(SITE))
    (docs / "communication-matrix.md").write_text("<!-- matrix: begin -->\n<!-- matrix: end -->\n")
    return tmp_path


def test_it_writes_once_and_then_has_nothing_to_write(tree, capsys):
    assert main([], tree) == 0
    assert "wrote roles/demo/README.md" in capsys.readouterr().out
    text = (tree / "roles" / "demo" / "README.md").read_text()
    assert text.startswith("# demo\n\nwords\n")
    assert text.endswith("<!-- variables: end -->\n\nmore\n")
    assert "| `demo_port` | int | `80` | Where it listens. |" in text
    assert "| `demo_users` | list of dict | `[]` | Who may use it. Empty for nobody. |" in text
    assert "| `demo_users[].name` | str | required | a \\| b |" in text
    assert "| gateway | 443/tcp | web | any, gateway |" in (tree / "docs" / "communication-matrix.md").read_text()
    tags = (tree / "docs" / "from-lab-to-production.md").read_text().splitlines()[3:-1]
    assert tags == [
        "| `demo` | demo | web, standby |",
        "| `all-of-it` | demo, watch | all |",
        "| `watch` | watch | all |",
    ]
    assert main([], tree) == 0
    assert capsys.readouterr().out == ""
    assert main(["--check"], tree) == 0


def test_check_names_what_is_out_of_date_and_writes_nothing(tree, capsys):
    main([], tree)
    specs = tree / "roles" / "demo" / "meta" / "argument_specs.yml"
    specs.write_text(SPECS.replace("default: 80", "default: 81"))
    before = (tree / "roles" / "demo" / "README.md").read_text()
    assert main(["--check"], tree) == 1
    assert "roles/demo/README.md is out of date" in capsys.readouterr().err
    assert (tree / "roles" / "demo" / "README.md").read_text() == before


@pytest.mark.parametrize("missing", ["README.md", "meta/argument_specs.yml"])
def test_a_role_without_its_papers_fails(tree, capsys, missing):
    (tree / "roles" / "demo" / missing).unlink()
    assert main(["--check"], tree) == 1
    assert f"roles/demo/{missing} is missing" in capsys.readouterr().err


def test_a_page_without_markers_gets_them_at_its_end():
    assert replaced("# demo\n", "x", "table", "page.md") == "# demo\n\n<!-- x: begin -->\ntable\n<!-- x: end -->\n"


@pytest.mark.parametrize("text", ["<!-- x: end -->", "<!-- x: begin -->", "<!-- x: end --> <!-- x: begin -->"])
def test_a_page_with_half_a_pair_of_markers_fails(text):
    with pytest.raises(DocsError, match=r"page\.md: needs the lines"):
        replaced(text, "x", "", "page.md")


def test_a_role_without_variables_says_so():
    assert variable_table({"argument_specs": {"main": {"short_description": "A role"}}}) == "No variables."


def test_a_role_without_a_tag_of_its_own_is_named():
    with pytest.raises(DocsError, match="the role demo has no tag demo"):
        tag_table([{"hosts": "web", "tasks": [role("demo", "web")]}])


def test_every_role_of_the_platform_has_its_tag_in_the_table():
    page = (ROOT / "docs" / "from-lab-to-production.md").read_text()
    assert tag_table(yaml.safe_load((ROOT / "playbooks" / "site.yml").read_text())) in page
    roles = {path.parent.name for path in (ROOT / "roles").glob("*/tasks")}
    # Data, what other roles call, and what rolls over all hosts.
    assert {name for name in roles if f"\n| `{name}` |" not in page} == {"platform", "python_release", "rollout"}
