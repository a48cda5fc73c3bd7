"""Rendezvous hashing: every instance picks the same cache node for a key, and a lost node moves only its own keys."""

import hashlib
from collections.abc import Iterable


def choose(key: str, nodes: Iterable[str]) -> str | None:
    """The node with the highest hash of (node, key); None where there is no node."""
    return max(nodes, key=lambda node: hashlib.blake2b(f"{node}\0{key}".encode(), digest_size=8).digest(), default=None)
