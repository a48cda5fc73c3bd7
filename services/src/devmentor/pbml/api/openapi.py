"""The table of endpoints, and the OpenAPI document that is made of it: there is no route that it does not describe."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from devmentor.common import names
from devmentor.pbml.api.answers import Error

Handler = Callable[[Request], Awaitable[Response]]

_EVERYWHERE = (400, 401, 429, 500, 503)
_PARTS: dict[str, dict[str, Any]] = {
    "document_id": {
        "schema": {"type": "string", "minLength": 1},
        "description": "The id that POST /v1/documents gave, or a turn's. Slashes may stand as they are or as %2F.",
    },
    "name": {"schema": {"type": "string", "pattern": names.PIN}, "description": "The pin's name."},
    "conversation_id": {"schema": {"type": "string", "pattern": names.CONVERSATION_ID}, "description": "Its name."},
}
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same request with the same key is done once and answered alike. Kept for 24 h.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route and all that the document says of it. `answer` None: a stream of lines of JSON."""

    method: str
    path: str
    handler: Handler
    summary: str
    status: int
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    errors: Sequence[int] = ()
    idempotent: bool = False
    public: bool = False

    def route(self) -> Route:
        """For Starlette."""
        return Route(self.path, self.handler, methods=[self.method])

    @property
    def documented_path(self) -> str:
        """Without Starlette's converters."""
        return self.path.replace(":path}", "}")


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1 for a table of endpoints."""
    table = list(endpoints)
    bodies = {e.body for e in table if e.body is not None}
    answers = {e.answer for e in table if e.answer is not None} | {Error}
    # By name, so that the document does not change from run to run.
    modes: list[tuple[type[BaseModel], Any]] = [
        *((model, "validation") for model in sorted(bodies, key=lambda model: model.__name__)),
        *((model, "serialization") for model in sorted(answers, key=lambda model: model.__name__)),
    ]
    refs, schemas = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    by_model: dict[Any, Any] = {model: schema for (model, _mode), schema in refs.items()}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        paths.setdefault(endpoint.documented_path, {})[endpoint.method.lower()] = _operation(endpoint, by_model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "PBML, the context service", "version": "1", "description": _ABOUT},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "A tenant's key."}},
            "schemas": schemas["$defs"],
        },
    }


_ABOUT = (
    "Documents and turns of conversations go in, what bears on a question comes out. Errors have one form, whose `code`"
    " is stable. A 503 says that nothing was acknowledged: send it again, with the same Idempotency-Key to do it once."
)


def _operation(endpoint: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    answer = (
        {"application/x-ndjson": {"schema": {"type": "string"}}}
        if endpoint.answer is None
        else {"application/json": {"schema": refs.get(endpoint.answer, {"type": "object"})}}
    )
    operation: dict[str, Any] = {
        "operationId": getattr(endpoint.handler, "__name__", endpoint.path),
        "summary": endpoint.summary,
        "responses": {str(endpoint.status): {"description": endpoint.summary, "content": answer}},
    }
    known = {400, 500} if endpoint.public else {*_EVERYWHERE, *endpoint.errors}
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": refs[endpoint.body]}},
        }
        known |= {413}
    if endpoint.idempotent:
        known |= {422}
    for status in sorted(known):
        operation["responses"][str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": refs[Error]}},
        }
    parameters = [
        {"name": name, "in": "path", "required": True, **part}
        for name, part in _PARTS.items()
        if f"{{{name}}}" in endpoint.documented_path
    ]
    if endpoint.query is not None:
        parameters += _query(endpoint.query)
    if endpoint.idempotent:
        parameters.append(_IDEMPOTENCY)
    if parameters:
        operation["parameters"] = parameters
    if endpoint.public:
        operation["security"] = []
    return operation


def _query(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    found = []
    for name, field in schema["properties"].items():
        # A parameter that is left out is null; one that is there is text.
        kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
        kept = {key: value for key, value in kinds[0].items() if key not in ("title", "description", "default")}
        found.append(
            {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                "description": field.get("description", ""),
                "schema": kept,
            }
        )
    return found
