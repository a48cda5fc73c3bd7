"""Hosts composed of the sample GPUs: the XML that nvidia-smi would print on them."""

from __future__ import annotations

import re
from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"

A100_MIG = "a100-sxm4-80gb-mig"
A100_40_MIG = "a100-sxm4-40gb-mig"
A100, H100, H200, L40S = "a100-sxm4-80gb", "h100-sxm5-80gb", "h200-sxm", "l40s"


def sample(name: str) -> str:
    """A sample as it is in its file: a host with this one GPU."""
    return (SAMPLES / f"{name}.xml").read_text()


def smi(*names: str) -> str:
    """A host with these GPUs, each with a UUID and a place of its own; without names, one whose driver has none."""
    head, _, tail = re.split(r"(  <gpu .*</gpu>\n)", sample(names[0] if names else H100), flags=re.DOTALL)
    gpus = ""
    for number, name in enumerate(names):
        found = re.search(r"  <gpu .*</gpu>\n", sample(name), re.DOTALL)
        assert found
        bus = f"00000000:{0x10 + number:02X}:00.0"
        text = re.sub(r"00000000:[0-9A-F]{2}:[0-9A-F]{2}\.0", bus, found.group())
        gpus += re.sub(r"(GPU-[0-9a-f]{8}-)[0-9a-f]{4}", rf"\g<1>{number:04x}", text)
    head = re.sub(r"<attached_gpus>\d+", f"<attached_gpus>{len(names)}", head)
    return head + gpus + tail
