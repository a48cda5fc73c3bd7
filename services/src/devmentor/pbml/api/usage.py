"""/v1/usage: what a tenant stores, how much it may, and for how long it is kept."""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse

from devmentor.common.errors import unavailable
from devmentor.pbml import tenant_limits
from devmentor.pbml.api import answers
from devmentor.pbml.api.openapi import Endpoint
from devmentor.pbml.api.requests import mapped
from devmentor.pbml.api.service import Service
from devmentor.pbml.store import usage
from devmentor.pbml.tenant_limits import Retention


class UsageReport:
    """The endpoint of quota and retention."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """The table of this theme."""
        return [
            Endpoint(
                "GET",
                "/v1/usage",
                self.get_usage,
                "What the tenant stores, its quota and its retention",
                200,
                answers.Usage,
            ),
        ]

    async def get_usage(self, request: Request) -> JSONResponse:
        """As of the last commits. A limit or a number of days that is not set is null."""
        tenant = self._service.keys.authenticate(request).name
        settings = self._service.settings
        async with mapped(), self._service.database.read() as c:
            used = await usage.read(c, tenant)
        if used is None:
            raise unavailable("usage_unknown", "not counted yet: the operator runs devmentor-pbml prepare", 30)
        limits = tenant_limits.limits(tenant_limits.of(settings.quotas, tenant))
        kept = tenant_limits.of(settings.retention, tenant) or Retention()
        found = {name: {"used": number, "limit": limits.get(name)} for name, number in asdict(used).items()}
        return JSONResponse({**found, "retention": kept.model_dump()})
