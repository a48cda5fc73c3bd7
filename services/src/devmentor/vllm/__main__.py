"""devmentor-vllm: keeps one vLLM engine, configured by KEEPER_* variables."""

import sys

from pydantic import ValidationError

from devmentor.common import logs
from devmentor.vllm.keeper import serve
from devmentor.vllm.settings import VllmSettings


def main() -> None:
    """Serve, or say on one line which setting is wrong."""
    logs.configure("vllm")
    try:
        settings = VllmSettings()  # type: ignore[call-arg]  # filled from the environment
    except ValidationError as error:
        sys.exit(f"devmentor-vllm: {error}")
    sys.exit(serve(settings))


if __name__ == "__main__":
    main()
