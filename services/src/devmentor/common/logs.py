"""One JSON object a line on stderr, for journald."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from devmentor.common import context

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """`extra={...}` becomes fields; request id and tenant come from the context."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, variable in (("request_id", context.request_id), ("tenant", context.tenant)):
            value = variable.get()
            if value is not None:
                entry[name] = value
        entry.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure(service: str, level: str = "info") -> None:
    """Replace the root logger's handlers; quiet the libraries that log a line a request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "procrastinate", "uvicorn.access", "psycopg.pool", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
