"""devmentor-qwen: one instance of the LLM tier, configured by QWEN_* variables."""

import sys

from pydantic import ValidationError

from devmentor.common import logs, server
from devmentor.common.auth import TenantsFileError
from devmentor.qwen.app import build
from devmentor.qwen.settings import QwenSettings


def main() -> None:
    """Serve until SIGTERM, or say which setting is wrong."""
    try:
        settings = QwenSettings()  # type: ignore[call-arg]  # filled from the environment
    except ValidationError as error:
        sys.exit(f"devmentor-qwen: {error}")
    logs.configure("qwen", settings.log_level)
    try:
        app = build(settings)
    except (OSError, TenantsFileError) as error:
        sys.exit(f"devmentor-qwen: {error}")
    server.run(app, settings)


if __name__ == "__main__":
    main()
