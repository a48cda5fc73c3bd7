"""Errors in OpenAI's form: {"error": {"message", "type", "code", "param"}}."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """What a client is told. `code` is stable and machine-readable, `message` says what to do; `kind` is OpenAI's type,
    where it is not the status's own."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The response body."""
        body = error_body(self.status, self.code, self.message, self.param)
        if self.kind is not None:
            body["error"]["type"] = self.kind
        return body

    def response(self) -> JSONResponse:
        """The response itself."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def unavailable(code: str, message: str, retry_after_s: int = 1) -> ApiError:
    """503 with Retry-After: something that we need is away, the request may be sent again."""
    return ApiError(503, code, message, headers={"Retry-After": str(retry_after_s)})


def invalid(error: ValidationError) -> ApiError:
    """400 from the first finding of pydantic, without the input's value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return ApiError(400, "invalid_value", f"{where}: {first['msg']}" if where else first["msg"], param=where or None)


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object for a status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


async def _on_api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_http_exception(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    body = error_body(error.status_code, code, error.detail)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ValidationError)
    return invalid(error).response()


def internal() -> ApiError:
    """What the client learns of an error that nobody foresaw: nothing, the log has it."""
    return ApiError(500, "internal_error", "internal error; the request id names it in the service's log")


EXCEPTION_HANDLERS: dict[Any, Any] = {
    ApiError: _on_api_error,
    HTTPException: _on_http_exception,
    ValidationError: _on_validation_error,
}
