"""What all endpoints do with a request: read it, bound it, and say in HTTP what the database could not do."""

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from devmentor.common import names
from devmentor.common.errors import ApiError, invalid, unavailable
from devmentor.pbml.db import DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.models import place_of, storable

log = logging.getLogger(__name__)

_CONVERSATION_ID = re.compile(names.CONVERSATION_ID)

R = TypeVar("R", bound=BaseModel)
P = TypeVar("P", str, int)


async def parse(request: Request, model: type[R]) -> R:
    """The body as `model`; ApiError 400 where it is none."""
    raw = await request.body()
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            raise ApiError(400, "invalid_json", "the body is not JSON") from None
        raise invalid(error) from None


def parse_query(request: Request, model: type[R]) -> R:
    """The address's parameters as `model`; ApiError 400 where they are none, or one is given twice."""
    given = request.query_params.multi_items()
    keys = [name for name, _value in given]
    twice = next((name for name in keys if keys.count(name) > 1), None)
    if twice is not None:
        raise ApiError(400, "invalid_value", f"{twice}: given more than once", param=twice)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise invalid(error) from None


def place(cursor: str | None, kind: Callable[[str], P], first: P) -> P:
    """Where a listing goes on; ApiError 400 where the cursor is not one of its own."""
    if cursor is None:
        return first
    try:
        return kind(place_of(cursor))
    except ValueError:
        raise ApiError(400, "invalid_cursor", "cursor: not a next_cursor of this listing", param="cursor") from None


def conversation_name(request: Request) -> str:
    """The path's conversation; ApiError 400 where it can be none."""
    name: str = request.path_params["conversation_id"]
    if not _CONVERSATION_ID.fullmatch(name):
        message = f"conversation_id: a name like {names.CONVERSATION_ID} is expected"
        raise ApiError(400, "invalid_value", message, param="conversation_id")
    return name


def times(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its times as text (ISO 8601, with the zone)."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


@asynccontextmanager
async def mapped() -> AsyncIterator[None]:
    """What the database could not do, as the client needs to hear it."""
    try:
        yield
    except DatabaseUnavailable as error:
        log.warning("database unavailable", extra={"reason": str(error)})
        raise unavailable("database_unavailable", "the store is away; nothing was written, send it again") from error
    except OutcomeUnknown as error:
        log.warning("outcome unknown", extra={"reason": str(error)})
        raise unavailable(
            "outcome_unknown", "not acknowledged: send it again, with the same Idempotency-Key to write it once"
        ) from error


def document_name(request: Request) -> str:
    """The path's document, a client's or a turn's; ApiError 400 where it can be none."""
    name: str = request.path_params["document_id"]
    try:
        return storable(name)
    except ValueError as error:
        raise ApiError(400, "invalid_value", f"document_id: {error}", param="document_id") from None


def no_document() -> ApiError:
    """404: never accepted, or deleted."""
    return ApiError(404, "document_not_found", "no such document")


def bounded(what: str, text: str, limit: int, param: str) -> int:
    """The text's size in bytes; ApiError 413 above the limit."""
    size = len(text.encode())
    if size > limit:
        raise too_large(what, limit, param)
    return size


def too_large(what: str, limit: int, param: str, unit: str = "bytes") -> ApiError:
    """413, with the limit."""
    return ApiError(413, f"{what}_too_large", f"the {what} is larger than {limit} {unit}", param=param)
