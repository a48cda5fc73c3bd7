"""What all endpoints do with a request: read it, bound it, and say in HTTP what the database could not do."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from devmentor.common.errors import ApiError, invalid, unavailable
from devmentor.pbml.db import DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.models import storable

log = logging.getLogger(__name__)

R = TypeVar("R", bound=BaseModel)


async def parse(request: Request, model: type[R]) -> R:
    """The body as `model`; ApiError 400 where it is none."""
    raw = await request.body()
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            raise ApiError(400, "invalid_json", "the body is not JSON") from None
        raise invalid(error) from None


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
