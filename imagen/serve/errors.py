"""Error responses in the format of OpenAI's API: a JSON object with one sentence."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from imagen.errors import UserError, quoted
from imagen.serve.job import Busy, Stopping
from imagen.serve.pictures import TooLarge
from imagen.serve.requests import RejectedPrompt

MESSAGES = {
    400: "bad request",
    404: "there is nothing at this address",
    405: "this address does not support the method",
}
INTERNAL = "an internal error occurred; the server's log has the details"
MAX_MESSAGE, MAX_PARAM = 1_000, 60  # characters of a message, and of the name of a field


class AccessDenied(Exception):
    """Raised to refuse a request with an HTTP status and a message."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: dict[str, str] | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.param = param
        self.code = code


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the JSON of an error response."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    shown = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
    named = param[:MAX_PARAM] if param else param
    return {"error": {"message": shown, "type": kind, "param": named, "code": code}}


def error_response(
    message: str, status: int, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return an error response."""
    return JSONResponse(error_body(message, status, param, code), status, headers)


def add_handlers(app: FastAPI) -> None:
    """Convert exceptions of routes to error responses."""

    @app.exception_handler(UserError)
    def mistake(_: Request, error: UserError) -> JSONResponse:
        if isinstance(error, RejectedPrompt):
            return error_response(str(error), 403, "prompt", "content_policy_violation")
        return error_response(str(error), 413 if isinstance(error, TooLarge) else 422)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        message, field = describe_errors(error.errors())
        return error_response(message, 422, field)

    @app.exception_handler(Busy)
    def busy(_: Request, error: Busy) -> JSONResponse:
        return error_response(str(error), 429, code="queue_full", headers={"Retry-After": str(error.retry_after)})

    @app.exception_handler(Stopping)
    def stopping(_: Request, error: Stopping) -> JSONResponse:
        return error_response(str(error), 503, code="stopping", headers={"Retry-After": "5"})

    @app.exception_handler(AccessDenied)
    def denied(_: Request, error: AccessDenied) -> JSONResponse:
        return error_response(str(error), error.status, error.param, error.code, error.headers)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        message = MESSAGES.get(error.status_code, str(error.detail))
        if error.status_code == 400 and error.detail:
            message = f"the request cannot be parsed: {error.detail}"
        return error_response(message, error.status_code, headers=dict(error.headers or {}))


def describe_errors(errors: Any) -> tuple[str, str | None]:
    """Return pydantic's errors as one sentence, and the name of the first field."""
    parts, first = [], None
    for error in list(errors)[:3]:
        where = ".".join(str(part) for part in error["loc"] if part not in ("body", "float", "int", "list[float]"))
        first = first or where or None
        if error["type"] == "extra_forbidden":
            parts.append(f"unknown field {quoted(where)}")
        elif error["type"] == "json_invalid":
            parts.append("the body is not valid JSON")
        elif error["type"] in ("missing", "model_attributes_type", "dict_type"):
            parts.append(f"{where or 'the body'} is {'missing' if error['type'] == 'missing' else 'not an object'}")
        else:
            parts.append(
                f"{where[:MAX_PARAM]} is {quoted(error.get('input'))}: {error['msg'][:1].lower()}{error['msg'][1:]}"
            )
    return "; ".join(dict.fromkeys(parts)), first
