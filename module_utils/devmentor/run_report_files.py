"""Where run reports are: two files per run, the newest kept, each put there whole by a rename."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .run_report_html import page

_OURS = re.compile(r"^(\d{8}T\d{6}Z-[A-Za-z0-9_.-]+-\d+)\.(?:json|html)$")


def stem(document: Mapping[str, Any], process: int) -> str:
    """20261126T162356Z-site-4711: sorts by time; the process id keeps two runs of one second apart."""
    began = re.sub(r"[-:]|\+00:00$", "", document["run"]["began"])
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(document["run"]["playbook"]).stem) or "playbook"
    return f"{began}Z-{name[:60]}-{process}"


def write(document: Mapping[str, Any], directory: Path, keep: int) -> Path:
    """Writes the HTML and the JSON file, removes all but the newest `keep` runs' files, returns the HTML file's path.

    Raises OSError where that cannot be done.
    """
    texts = {"json": json.dumps(document, indent=1, ensure_ascii=False) + "\n", "html": page(document)}
    name = stem(document, os.getpid())
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    for kind, text in texts.items():
        _put(directory / f"{name}.{kind}", text)
    prune(directory, keep)
    return directory / f"{name}.html"


def _put(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False, encoding="utf-8") as file:
        try:
            # A name from a broken locale may hold half a character.
            file.write(text.encode("utf-8", "replace").decode("utf-8"))
            file.flush()
            os.chmod(file.name, 0o640)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def prune(directory: Path, keep: int) -> None:
    """Leaves files that no run has written alone."""
    found = [(match[1], path) for path in directory.iterdir() if (match := _OURS.match(path.name))]
    stale = sorted({name for name, _ in found}, reverse=True)[max(1, keep) :]
    for name, path in found:
        if name in stale:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
