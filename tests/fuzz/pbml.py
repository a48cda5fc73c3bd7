"""`make fuzz-pbml`: schemathesis asks PBML's API all that docs/pbml-openapi.json allows, and more.

    python -m tests.fuzz.pbml --seconds 45 --seed 1

PBML's own processes, a private PostgreSQL and the pinned Qdrant on loopback; a pretended engine embeds. Bounded by time
and by examples; exits 1 where an answer is a 5xx or not as the document says. The short form is a unit test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.pbml.stack import TENANTS, everything, key_of
from tools.runs import ROOT

DOCUMENT = ROOT / "docs" / "pbml-openapi.json"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)
"""Not `positive_data_acceptance`: what is allowed may still be refused, for its size or for a watermark."""
PHASES = ("examples", "coverage", "fuzzing", "stateful")


@contextmanager
def serving() -> Iterator[str]:
    """The URL of an API with a worker beside it, until the block ends."""
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-pbml-") as place,
        everything(Path(place), model=None, standbys=0, postgres_gib=0.25) as stack,
        stack.api() as api,
        stack.worker(),
    ):
        yield api.url


def ask(
    url: str, seconds: int | None, examples: int, seed: int, phases: Sequence[str] = PHASES, document: Path = DOCUMENT
) -> subprocess.CompletedProcess[str]:
    """schemathesis' output and exit status. With `seconds` it goes on until they are over; without, it makes no more
    than so many `examples` of an endpoint in a phase, however long they take.
    """
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        str(document),
        f"--url={url}",
        f"--header=Authorization: Bearer {key_of(TENANTS[0])}",
        f"--checks={','.join(CHECKS)}",
        f"--phases={','.join(phases)}",
        *([f"--max-time={seconds}"] if seconds is not None else []),
        f"--max-examples={examples}",
        f"--seed={seed}",
        "--request-timeout=15",
        "--generation-database=none",
        "--suppress-health-check=all",
        "--warnings=off",
        "--no-shrink",
        "--no-color",
    ]
    with tempfile.TemporaryDirectory(prefix="fuzz-pbml-") as place:
        return subprocess.run(
            command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz-pbml", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=45, help="of asking; the processes' start comes on top")
    parser.add_argument("--examples", type=int, default=100, help="most of one endpoint in one phase")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with serving() as url:
        done = ask(url, options.seconds, options.examples, options.seed)
    sys.stdout.write(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
