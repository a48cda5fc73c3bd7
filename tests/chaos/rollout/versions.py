"""Releases to roll to: the sources under another label, or a copy of them that misbehaves."""

from __future__ import annotations

import shutil
from pathlib import Path

from tools.runs import ROOT

SERVICES = ROOT / "services"
COPIES = ROOT / ".cache" / "chaos" / "services"
TEMPLATE = Path(__file__).with_name("pretended_misbehaving.py")
MAIN, ADDED = Path("src/devmentor/qwen/__main__.py"), Path("src/devmentor/qwen/misbehaving.py")
RUN = "    server.run(app, settings)\n"
PATCHED = """    from devmentor.qwen.misbehaving import misbehave

    misbehave(app, "{how}")
"""


def misbehaving(how: str, source: Path = SERVICES, copies: Path = COPIES) -> Path:
    """A copy of the services whose QWEN misbehaves; one that is there is made anew.

    Raises ValueError where the sources have changed so that the copy would not.
    """
    copy = copies / how
    shutil.rmtree(copy, ignore_errors=True)
    # What is linked in becomes part of the copy.
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    main = copy / MAIN
    text = main.read_text()
    if text.count(RUN) != 1:
        raise ValueError(f"{MAIN} does not have the one line {RUN.strip()!r}: see {Path(__file__).name}")
    main.write_text(text.replace(RUN, PATCHED.format(how=how) + RUN))
    shutil.copyfile(TEMPLATE, copy / ADDED)
    return copy


def variables(label: str, how: str = "") -> dict[str, str]:
    """Ansible's variables for a release of that label."""
    services = {"python_release_services": str(misbehaving(how))} if how else {}
    return {"devmentor_release_label": label, **services}
