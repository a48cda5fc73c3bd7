"""/v1/pins: facts that are in every answer, before anything that was found."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from devmentor.common import names
from devmentor.common.errors import ApiError
from devmentor.pbml.api import answers
from devmentor.pbml.api.openapi import Endpoint
from devmentor.pbml.api.requests import bounded, mapped, parse, parse_query
from devmentor.pbml.api.service import Service
from devmentor.pbml.models import PinRequest, PinsQuery
from devmentor.pbml.store import pins
from devmentor.pbml.store.pins import Pin

_NAME = re.compile(names.PIN)


class Pins:
    """Endpoints of pinned facts. `?conversation_id=` names the conversation that one belongs to; without, the tenant.

    A pin is in force from its commit on: it is no document, has no versions and needs no job.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """The table of this theme."""
        one = "/v1/pins/{name}"
        return [
            Endpoint("GET", "/v1/pins", self.list_pins, "List pinned facts", 200, answers.Pins, query=PinsQuery),
            Endpoint(
                "PUT",
                one,
                self.put_pin,
                "Pin a fact: in every answer from now on",
                200,
                answers.PinWritten,
                body=PinRequest,
                query=PinsQuery,
                errors=(409, 413),
            ),
            Endpoint("GET", one, self.get_pin, "A pinned fact", 200, answers.Pin, query=PinsQuery, errors=(404,)),
            Endpoint(
                "DELETE",
                one,
                self.delete_pin,
                "Unpin a fact: in no answer from now on",
                200,
                answers.PinChanged,
                query=PinsQuery,
                errors=(404,),
            ),
        ]

    async def list_pins(self, request: Request) -> JSONResponse:
        """The pins of the tenant, or of the conversation, by name."""
        tenant = self._service.keys.authenticate(request).name
        conversation = _conversation(request)
        async with mapped(), self._service.database.read() as c:
            found = await pins.listed(c, tenant, conversation, tenants_too=False)
        return JSONResponse({"pins": [_body(pin) for pin in found]})

    async def put_pin(self, request: Request) -> JSONResponse:
        """200: the pin's text is this from now on."""
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
        return JSONResponse({"name": name, "created": done.value, "durability": done.durability})

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
    return parse_query(request, PinsQuery).conversation_id or pins.OF_TENANT


def _no_pin() -> ApiError:
    return ApiError(404, "pin_not_found", "no such pin")
