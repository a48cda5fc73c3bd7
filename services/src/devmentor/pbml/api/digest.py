"""/v1/digest: what this replica's local state has; and what /ready says of it."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse

from devmentor.common.errors import ApiError, unavailable
from devmentor.common.health import ANSWER_WITHIN_S, Check
from devmentor.pbml.api import answers
from devmentor.pbml.api.openapi import Endpoint
from devmentor.pbml.api.service import Service
from devmentor.pbml.state.fetch import read
from devmentor.pbml.state.reader import StateAway
from devmentor.pbml.store import operations

_READ_S = 5.0


class Digest:
    """The endpoint of the state."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """The table of this theme."""
        return [
            Endpoint(
                "GET",
                "/v1/digest",
                self.get_digest,
                "The digest of the tenant's documents in this replica's local state",
                200,
                answers.StateDigest,
                errors=(404,),
            )
        ]

    async def get_digest(self, request: Request) -> JSONResponse:
        """The tenant's digest and the position it is of."""
        tenant = self._service.keys.authenticate(request).name
        if self._service.state is None:
            raise ApiError(404, "no_state", "this replica keeps no local state: PBML_STATE_DIR is not set")
        try:
            about, documents = await read(
                self._service.state, lambda view: (view.about(tenant), view.documents(tenant)), _READ_S
            )
        except StateAway as error:
            raise unavailable("state_not_ready", f"the local state can not answer yet: {error}") from error
        return JSONResponse(
            {
                "replica": self._service.settings.replica,
                "position": about.position,
                "digest": about.digest,
                "documents": documents,
                "synced_at": datetime.fromtimestamp(about.at, UTC).isoformat(),
            }
        )


def checks(service: Service) -> list[Check]:
    """With a state, fetches need PostgreSQL or it: one of them."""
    state = service.state
    if state is None:
        return []

    async def reads() -> str:
        try:
            notes = await read(state, lambda view: view.notes, ANSWER_WITHIN_S / 2)
        except StateAway as error:
            name = service.settings.replica
            await service.database.write(lambda c: operations.touch_replica(c, name), timeout_s=ANSWER_WITHIN_S / 2)
            return f"by PostgreSQL; {error}"
        return f"the state is of {datetime.fromtimestamp(float(notes['at']), UTC).isoformat(timespec='seconds')}"

    return [Check("reads", reads)]
