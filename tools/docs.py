"""Generated parts of the documentation: every role's variable table, the communication matrix and the tags of site.yml.

    python -m tools.docs            writes them
    python -m tools.docs --check    exits 1 and names the files that are out of date

A table stands between two markers, `<!-- variables: begin -->` and `<!-- variables: end -->` (or `matrix:`, `tags:`);
the text around it is a person's.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from filter_plugins.firewall import matrix_table

ROOT = Path(__file__).resolve().parents[1]


class DocsError(Exception):
    """A file whose generated part cannot be made; the message names it and the remedy."""


def _text(value: object) -> str:
    """A description (a string or a list of them) as one table cell."""
    parts = value if isinstance(value, list) else [value]
    return " ".join(" ".join(str(part).split()) for part in parts).replace("|", "\\|")


def _code(value: object) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{shown}`".replace("|", "\\|") if shown else "empty"


def _type(option: Mapping[str, Any]) -> str:
    kind = str(option.get("type", "str"))
    if "elements" in option:
        kind = f"{kind} of {option['elements']}"
    if "choices" in option:
        kind += ": " + ", ".join(str(choice) for choice in option["choices"])
    return kind


def _rows(options: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Iterator[str]:
    for name, option in options.items():
        default = _code(option["default"]) if "default" in option else ""
        if option.get("required"):
            default = "required"
        yield f"| `{prefix}{name}` | {_type(option)} | {default} | {_text(option['description'])} |"
        inner = "[]." if option.get("type") == "list" else "."
        yield from _rows(option.get("options") or {}, f"{prefix}{name}{inner}")


def variable_table(specs: Mapping[str, Any]) -> str:
    """The Markdown table of a role's `meta/argument_specs.yml` (parsed), one entry point after the other."""
    tables = []
    points = specs["argument_specs"]
    for point, spec in points.items():
        lines = [f"Entry point `{point}`: {_text(spec['short_description'])}", ""] if len(points) > 1 else []
        if not spec.get("options"):
            tables.append("\n".join([*lines, "No variables."]))
            continue
        lines += ["| variable | type | default | meaning |", "| --- | --- | --- | --- |", *_rows(spec["options"])]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def tag_table(plays: list[Mapping[str, Any]]) -> str:
    """The Markdown table of the tags of site.yml (parsed), in the order of the run.

    Raises DocsError where a role cannot be run by a tag of its own name.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for play in plays:
        for task in play.get("tasks", []):
            role = task["ansible.builtin.import_role"]["name"]
            if role not in task.get("tags", []):
                raise DocsError(f"playbooks/site.yml: the role {role} has no tag {role}; every role has its own.")
            for tag in task["tags"]:
                row = found.setdefault(tag, {"roles": [], "hosts": []})
                row["roles"].append(role)
                hosts = play["hosts"].removesuffix(":!offline").split(":")
                row["hosts"] += [group for group in hosts if group not in row["hosts"]]
    lines = ["| tag | roles | hosts of |", "| --- | --- | --- |"]
    for tag, row in found.items():
        groups = ["all"] if "all" in row["hosts"] else row["hosts"]
        lines.append(f"| `{tag}` | {', '.join(row['roles'])} | {', '.join(groups)} |")
    return "\n".join(lines)


def replaced(text: str, marker: str, table: str, name: str) -> str:
    """`text` with what stands between the two markers replaced by `table`.

    A text without markers gets them at its end. Raises DocsError where they are not exactly one pair.
    """
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    if begin not in text and end not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise DocsError(f"{name}: needs the lines {begin} and {end}, once each and in this order.")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{table}\n{end}{tail}"


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def pages(root: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, text as it is, text as it should be) of everything generated below `root`."""
    for role in sorted((root / "roles").iterdir()):
        specs = role / "meta" / "argument_specs.yml"
        if not role.is_dir() or not (role / "tasks").is_dir():
            continue
        readme = role / "README.md"
        for needed in (specs, readme):
            if not needed.exists():
                raise DocsError(f"{needed.relative_to(root)} is missing: every role has one.")
        old = readme.read_text()
        yield readme, old, replaced(old, "variables", variable_table(_yaml(specs)), str(readme.relative_to(root)))
    data = root / "roles" / "platform" / "defaults" / "main"
    matrix = _yaml(data / "network.yml")["devmentor_communication_matrix"]
    page = root / "docs" / "communication-matrix.md"
    old = page.read_text()
    table = matrix_table(matrix, _yaml(data / "ports.yml")["devmentor_ports"])
    yield page, old, replaced(old, "matrix", table, str(page.relative_to(root)))
    page = root / "docs" / "from-lab-to-production.md"
    old = page.read_text()
    table = tag_table(_yaml(root / "playbooks" / "site.yml"))
    yield page, old, replaced(old, "tags", table, str(page.relative_to(root)))


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Generated tables in docs/ and the roles' READMEs.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is out of date")
    check = parser.parse_args(arguments).check
    problems = 0
    try:
        for path, old, new in pages(root):
            if old == new:
                continue
            name = str(path.relative_to(root))
            if check:
                problems += 1
                print(f"{name} is out of date. Run `make docs`.", file=sys.stderr)
                changes = difflib.unified_diff(old.splitlines(), new.splitlines(), name, "generated", n=0, lineterm="")
                print("\n".join(list(changes)[:20]), file=sys.stderr)
            else:
                path.write_text(new)
                print(f"wrote {name}")
    except DocsError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 1
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
