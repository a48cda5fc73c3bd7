"""Whether a tenant may store more. Asked in the transaction that accepts, before anything is written."""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge

from devmentor.common.errors import ApiError, unavailable
from devmentor.pbml import tenant_limits
from devmentor.pbml.db import Connection
from devmentor.pbml.store import usage
from devmentor.pbml.store.usage import Usage
from devmentor.pbml.tenant_limits import Quotas

REFUSED = Counter("pbml_quota_refused", "Writes that were refused by a quota", ["tenant", "limit"])
USED = Gauge("pbml_usage", "What a tenant stores: bytes, documents, turns", ["tenant", "limit"])
LIMIT = Gauge("pbml_quota", "The most that a tenant may store; absent where there is no limit", ["tenant", "limit"])

_UNITS = {"bytes": "bytes of text", "documents": "documents", "turns": "turns"}


class QuotaCheck:
    """The quotas of this deployment.

    Writes of a tenant do not wait for each other, so those that are under way at the same moment do not see each other:
    a limit can be passed by what fits into one transaction for each connection of the APIs.
    """

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def documents(self, c: Connection, tenant: str, sizes: Mapping[str, int]) -> None:
        """ApiError 403 where the next versions of documents, id -> bytes, would together pass a limit."""
        limits = tenant_limits.limits(tenant_limits.of(self._quotas, tenant))
        if limits:
            before = await usage.stored_bytes(c, tenant, list(sizes))
            more = Usage(sum(sizes.values()) - sum(before.values()), len(sizes) - len(before), 0)
            _check(tenant, limits, await usage.read(c, tenant), more)

    async def turn(self, c: Connection, tenant: str, size: int) -> None:
        """The same for a turn."""
        limits = tenant_limits.limits(tenant_limits.of(self._quotas, tenant))
        if limits:
            _check(tenant, limits, await usage.read(c, tenant), Usage(size, 0, 1))


def _check(tenant: str, limits: dict[str, int], used: Usage | None, more: Usage) -> None:
    if used is None:
        raise unavailable(
            "usage_unknown",
            "what this tenant stores is not counted yet, and it has a quota; nothing was written. The operator runs"
            " devmentor-pbml prepare",
            retry_after_s=30,
        )
    for name, limit in limits.items():
        has, needs = getattr(used, name), getattr(more, name)
        if needs > 0 and has + needs > limit:
            REFUSED.labels(tenant, name).inc()
            raise ApiError(
                403,
                "quota_exceeded",
                f"quota of {name}: {has} of {limit} {_UNITS[name]} are used and this needs {needs} more. Sending it"
                " again does not help: delete documents or conversations, or have the operator set a retention"
                " (pbml_retention) or a larger quota (pbml_quotas)",
            )


def measure(quotas: Quotas, used: dict[str, Usage]) -> None:
    """Set the metrics of all tenants."""
    for tenant, found in used.items():
        for name in _UNITS:
            USED.labels(tenant, name).set(getattr(found, name))
        for name, limit in tenant_limits.limits(tenant_limits.of(quotas, tenant)).items():
            LIMIT.labels(tenant, name).set(limit)
