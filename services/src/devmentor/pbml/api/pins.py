"""/v1/pins: facts that are in every answer, before anything that was found."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from devmentor.common import names
from devmentor.common.errors import ApiError
from devmentor.pbml.api.requests import bounded, mapped, parse
from devmentor.pbml.api.service import Service
from devmentor.pbml.models import PinRequest
from devmentor.pbml.store import pins
from devmentor.pbml.store.pins import Pin

_NAME = re.compile(names.PIN)
_CONVERSATION_ID = re.compile(names.CONVERSATION_ID)


class Pins:
    """Endpoints of pinned facts. `?conversation_id=` names the conversation that one belongs to; without, the tenant.

    A pin is in force from its commit on: it is no document, has no versions and needs no job.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """The routes of this theme."""
        return [
            Route("/v1/pins", self.list_pins, methods=["GET"]),
            Route("/v1/pins/{name}", self.put_pin, methods=["PUT"]),
            Route("/v1/pins/{name}", self.get_pin, methods=["GET"]),
            Route("/v1/pins/{name}", self.delete_pin, methods=["DELETE"]),
        ]

    async def list_pins(self, request: Request) -> JSONResponse:
        """The pins of the tenant, or of the conversation, by name."""
        tenant = self._service.keys.authenticate(request).name
        conversation = _conversation(request)
        async with mapped(), self._service.database.read() as c:
            found = await pins.listed(c, tenant, conversation, tenants_too=False)
        return JSONResponse({"pins": [_body(pin) for pin in found]})

    async def put_pin(self, request: Request) -> JSONResponse:
        """200: the pin's text is this from now on; 201 where it is new."""
        tenant = self._service.keys.authenticate(request).name
        name, conversation = _name(request), _conversation(request)
        body = await parse(request, PinRequest)
        bounded("pin", body.text, self._service.settings.max_pin_bytes, "text")
        most = self._service.settings.max_pins
        try:
            async with mapped():
                done = await self._service.database.write(
                    lambda c: pins.put(c, tenant, conversation, name, body.text, most)
                )
        except pins.TooManyPins:
            raise ApiError(409, "too_many_pins", f"there are {most} pins already; remove one first") from None
        return JSONResponse({"name": name, "durability": done.durability}, status_code=201 if done.value else 200)

    async def get_pin(self, request: Request) -> JSONResponse:
        """The pin's text."""
        tenant = self._service.keys.authenticate(request).name
        name, conversation = _name(request), _conversation(request)
        async with mapped(), self._service.database.read() as c:
            pin = await pins.one(c, tenant, conversation, name)
        if pin is None:
            raise _no_pin()
        return JSONResponse(_body(pin))

    async def delete_pin(self, request: Request) -> JSONResponse:
        """200: in no answer from now on."""
        tenant = self._service.keys.authenticate(request).name
        name, conversation = _name(request), _conversation(request)
        async with mapped():
            done = await self._service.database.write(lambda c: pins.remove(c, tenant, conversation, name))
        if not done.value:
            raise _no_pin()
        return JSONResponse({"name": name, "durability": done.durability})


def _body(pin: Pin) -> dict[str, Any]:
    return {
        "name": pin.name,
        "conversation_id": pin.conversation_id or None,
        "text": pin.body,
        "updated_at": pin.updated_at.isoformat(),
    }


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    if not _NAME.fullmatch(name):
        raise ApiError(400, "invalid_value", f"name: a name like {names.PIN} is expected", param="name")
    return name


def _conversation(request: Request) -> str:
    name = request.query_params.get("conversation_id")
    if name is None:
        return pins.OF_TENANT
    if not _CONVERSATION_ID.fullmatch(name):
        message = f"conversation_id: a name like {names.CONVERSATION_ID} is expected"
        raise ApiError(400, "invalid_value", message, param="conversation_id")
    return name


def _no_pin() -> ApiError:
    return ApiError(404, "pin_not_found", "no such pin")
