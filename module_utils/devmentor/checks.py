"""What "works" means, tier by tier: each check asks a service for real work and keeps the evidence.

This is the table of the tiers; `checks_<tier>.py` has the checks of each, `checks_base.py` what a check is. Nothing
that is asked for stays behind: keys expire, documents are deleted, canary rows are swept.
"""

from __future__ import annotations

import collections.abc as c
import concurrent.futures
from typing import Any

from .checks_base import Plan, Recorder, Row, Unanswered
from .checks_cache import check_cache
from .checks_engines import check_embeddings, check_engine
from .checks_host import check_host
from .checks_monitoring import check_alertmanager, check_exporters, check_prometheus
from .checks_postgres import check_pgbouncer, check_postgres
from .checks_qdrant import check_qdrant
from .checks_services import check_gateway, check_pbml, check_qwen

# Component -> (the group whose hosts are asked, the function).
COMPONENTS: dict[str, tuple[str, c.Callable[[Plan, Recorder], None]]] = {
    "host": ("all", check_host),
    "postgres": ("postgres", check_postgres),
    "pgbouncer": ("pgbouncer", check_pgbouncer),
    "cache": ("cache", check_cache),
    "qdrant": ("qdrant", check_qdrant),
    "engine": ("qwen", check_engine),
    "embeddings": ("pbml", check_embeddings),
    "pbml": ("pbml", check_pbml),
    "qwen": ("qwen", check_qwen),
    "gateway": ("gateway", check_gateway),
    "prometheus": ("monitoring", check_prometheus),
    "alertmanager": ("monitoring", check_alertmanager),
    "exporters": ("all", check_exporters),
}


def run_all(plan: Plan) -> tuple[list[Row], dict[str, Any]]:
    """Every component of this host, side by side; the rows in the order of the table above."""
    records = [
        (Recorder(plan, component), function)
        for component, (group, function) in COMPONENTS.items()
        if group == "all" or group in plan.groups
    ]
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(records)) as pool:
        futures = [pool.submit(function, plan, record) for record, function in records]
    facts: dict[str, Any] = {}
    rows: list[Row] = []
    for (record, _), future in zip(records, futures, strict=True):
        error = future.exception()
        if error is not None:
            record.check("plan", lambda e=error: _raise(e))  # type: ignore[misc]
        rows += record.rows
        facts |= record.facts
    return rows, facts


def _raise(error: BaseException) -> str:
    raise Unanswered(f"{type(error).__name__}: {error}")
