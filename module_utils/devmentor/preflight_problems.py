"""What preflight finds: a problem with its remedy, and all of them as the operator reads them."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Problem:
    """One reason not to begin: on which hosts, about what, what is wrong, and what to do."""

    hosts: tuple[str, ...]
    what: str
    problem: str
    remedy: str


def merge(problems: c.Iterable[Problem]) -> list[Problem]:
    """The same problem on several hosts is one problem."""
    hosts: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        known = hosts.setdefault((problem.what, problem.problem, problem.remedy), [])
        known += [host for host in problem.hosts if host not in known]
    return [Problem(tuple(names), *key) for key, names in hosts.items()]


def render(problems: c.Iterable[Problem], all_hosts: c.Collection[str]) -> str:
    """One line per problem: `host: what: problem. Remedy: remedy.`"""
    lines = []
    for problem in merge(problems):
        everywhere = not problem.hosts or (len(all_hosts) > 1 and set(problem.hosts) >= set(all_hosts))
        hosts = "all hosts" if everywhere else ",".join(sorted(problem.hosts, key=_natural))
        lines.append(f"{hosts}: {problem.what}: {problem.problem}. Remedy: {problem.remedy}.")
    return "\n".join(lines)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts lab2 before lab10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
