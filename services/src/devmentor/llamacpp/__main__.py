"""devmentor-llamacpp: one engine instance, configured by LLAMACPP_* variables."""

import sys

from pydantic import ValidationError

from devmentor.common import logs
from devmentor.llamacpp.server import serve
from devmentor.llamacpp.settings import LlamacppSettings


def main() -> None:
    """Serve, or say on one line which setting is wrong."""
    logs.configure("llamacpp")
    try:
        settings = LlamacppSettings()  # type: ignore[call-arg]  # filled from the environment
    except ValidationError as error:
        sys.exit(f"devmentor-llamacpp: {error}")
    serve(settings)


if __name__ == "__main__":
    main()
