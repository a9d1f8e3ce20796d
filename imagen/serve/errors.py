"""Errors as the OpenAI API has them: a JSON object with a sentence, whatever went wrong."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from imagen.errors import UserError, quoted
from imagen.serve.job import Busy, Stopping
from imagen.serve.pictures import TooLarge
from imagen.serve.requests import Refused

NAMES = {400: "bad request", 404: "there is nothing here", 405: "this address does not take that method"}
INTERNAL = "something went wrong inside the server; its log says what"
MOST, MOST_PARAM = 1_000, 60  # characters of a message, and of the field that it is about


class Denied(Exception):
    """401, 403, 404, 429...: with a sentence."""

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


def body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    shown = message if len(message) <= MOST else f"{message[:MOST]}..."
    named = param[:MOST_PARAM] if param else param
    return {"error": {"message": shown, "type": kind, "param": named, "code": code}}


def answer(
    message: str, status: int, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(body(message, status, param, code), status, headers)


def add_handlers(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    def mistake(_: Request, error: UserError) -> JSONResponse:
        if isinstance(error, Refused):
            return answer(str(error), 403, "prompt", "content_policy_violation")
        return answer(str(error), 413 if isinstance(error, TooLarge) else 422)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        message, field = sentence(error.errors())
        return answer(message, 422, field)

    @app.exception_handler(Busy)
    def busy(_: Request, error: Busy) -> JSONResponse:
        return answer(str(error), 429, code="queue_full", headers={"Retry-After": str(error.retry_after)})

    @app.exception_handler(Stopping)
    def stopping(_: Request, error: Stopping) -> JSONResponse:
        return answer(str(error), 503, code="stopping", headers={"Retry-After": "5"})

    @app.exception_handler(Denied)
    def denied(_: Request, error: Denied) -> JSONResponse:
        return answer(str(error), error.status, error.param, error.code, error.headers)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        message = NAMES.get(error.status_code, str(error.detail))
        if error.status_code == 400 and error.detail:
            message = f"the request cannot be read: {error.detail}"
        return answer(message, error.status_code, headers=dict(error.headers or {}))


def sentence(errors: Any) -> tuple[str, str | None]:
    """What pydantic found, as a sentence and the field."""
    parts, first = [], None
    for error in list(errors)[:3]:
        place = ".".join(str(part) for part in error["loc"] if part not in ("body", "float", "int", "list[float]"))
        first = first or place or None
        if error["type"] == "extra_forbidden":
            parts.append(f"unknown field {quoted(place)}")
        elif error["type"] == "json_invalid":
            parts.append("the body is not valid JSON")
        elif error["type"] in ("missing", "model_attributes_type", "dict_type"):
            parts.append(f"{place or 'the body'} is missing" if error["type"] == "missing" else "the body is no object")
        else:
            parts.append(f"{place} is {quoted(error.get('input'))}: {error['msg'][:1].lower()}{error['msg'][1:]}")
    return "; ".join(dict.fromkeys(parts)), first
