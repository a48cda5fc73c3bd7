"""Network faults: a host, or one direction between two, loses every frame while its link stays up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from lab.host import Host
from lab.names import Names
from lab.proc import run


def _add(names: Names, which: str, elements: Sequence[str]) -> None:
    if elements:
        run(["nft", "add", "element", "bridge", names.cut_table, which, f"{{ {', '.join(elements)} }}"])


def isolate(host: Host, *, keep_control: bool = False) -> None:
    """Cut a host off from all others, and from the machine too unless `keep_control`."""
    _add(host.names, "peerless" if keep_control else "alone", [f'"{host.interface}"'])


def cut(sources: Sequence[Host], targets: Sequence[Host], *, one_way: bool = False) -> None:
    """Drop what `sources` send to `targets`, and the other direction too unless `one_way`.

    Address resolution still passes: without it, a cut in one direction would become one in both after a minute.
    """
    pairs = [(a, b) for a, b in product(sources, targets) if a.name != b.name]
    if not one_way:
        pairs += [(b, a) for a, b in pairs]
    if pairs:
        _add(pairs[0][0].names, "pair", sorted({f'"{a.interface}" . "{b.interface}"' for a, b in pairs}))


def heal(names: Names) -> None:
    """Undo every cut of the lab."""
    for which in ("alone", "peerless", "pair"):
        run(["nft", "flush", "set", "bridge", names.cut_table, which])


@dataclass(frozen=True)
class Cuts:
    """The cuts in force, by interface name; a pair is (from, to)."""

    alone: list[str]
    peerless: list[str]
    pairs: list[tuple[str, str]]


def cuts(names: Names) -> Cuts:
    listing = json.loads(run(["nft", "--json", "list", "table", "bridge", names.cut_table]))
    sets = {entry["set"]["name"]: entry["set"].get("elem", []) for entry in listing["nftables"] if "set" in entry}
    pairs = [(element["concat"][0], element["concat"][1]) for element in sets["pair"]]
    return Cuts(sets["alone"], sets["peerless"], pairs)
