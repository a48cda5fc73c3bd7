"""Pairs of questions that may share an answer, and pairs that look alike and must not.

No package that a client of a registry installs carries a public paraphrase set, so both kinds are made by the rules
below from the names of Debian's packages that are installed (dpkg). They are regular where people are not: a rate of
false hits among them is one for these rules, rule by rule, and no promise for a site's own questions.
"""

from __future__ import annotations

import difflib
import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Rule -> two wordings of one question about package {p}.
PARAPHRASES = {
    "install": ("How do I install {p} on Debian?", "What is the way to install {p} on Debian?"),
    "what": ("What is {p} used for?", "Can you tell me what {p} is used for?"),
    "remove": ("How can I remove {p} completely?", "What do I have to do to remove {p} completely?"),
    "configuration": ("Where does {p} keep its configuration?", "Where is the configuration of {p} kept?"),
    "version": ("Which version of {p} is in stable?", "What version of {p} does stable have?"),
    "fails": ("Why does {p} fail to start?", "What makes {p} fail to start?"),
}
# Rule -> two questions with different answers that differ in one respect. {q} is the package with the nearest name.
NEAR_MISSES = {
    "other name": ("How do I install {p} on Debian?", "How do I install {q} on Debian?"),
    "opposite": ("How do I install {p} on Debian?", "How do I remove {p} on Debian?"),
    "negation": ("Why does {p} start at boot?", "Why does {p} not start at boot?"),
    "number": ("How do I make {p} listen on port 8080?", "How do I make {p} listen on port 8443?"),
    "turned round": ("How do I replace {p} by {q}?", "How do I replace {q} by {p}?"),
    "other aspect": ("Where does {p} keep its configuration?", "Where does {p} keep its logs?"),
    "other place": ("How do I install {p} on Debian?", "How do I install {p} on Fedora?"),
    "other scope": ("How do I update {p} alone?", "How do I update everything but {p}?"),
}
# Near misses too, written when `semantic.marks` was finished and never used to change it.
HELD_OUT = {
    "number in words": ("Can I run two instances of {p}?", "Can I run three instances of {p}?"),
    "who": ("Can a user change the settings of {p}?", "Can an administrator change the settings of {p}?"),
    "where": ("Is it safe to use {p} in production?", "Is it safe to use {p} in development?"),
    "must or may": ("Must I restart {p} after an update?", "May I restart {p} after an update?"),
    "who on whom": ("Does {p} slow down the kernel?", "Does the kernel slow down {p}?"),
    "time": ("What changed in {p} yesterday?", "What changed in {p} today?"),
    "cause or remedy": ("What causes high memory use of {p}?", "What reduces high memory use of {p}?"),
    "part": ("How large is the source of {p}?", "How large is the documentation of {p}?"),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions, the rule they were made by, and whether one answer serves both."""

    rule: str
    one: str
    other: str
    same: bool


def installed() -> list[str]:
    """Names of the packages that are installed. Raises CalledProcessError."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\n"], capture_output=True, text=True, check=True)
    return sorted(set(listed.stdout.split()))


def sample(names: Sequence[str], number: int) -> list[str]:
    """So many of the names, always the same ones of the same list."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:number]


def pairs(names: Sequence[str], chosen: Sequence[str]) -> Iterator[Pair]:
    """Every rule's pair for every chosen name; `names` has the neighbours."""
    for name in chosen:
        near = [other for other in difflib.get_close_matches(name, names, 2, cutoff=0.0) if other != name]
        values = {"p": name, "q": near[0]}
        for rules, same in ((PARAPHRASES, True), (NEAR_MISSES, False), (HELD_OUT, False)):
            for rule, (one, other) in rules.items():
                yield Pair(rule, one.format(**values), other.format(**values), same)
