"""What can go wrong, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from stepaudio_jax.audio import AudioError
from stepaudio_jax.inference import PromptError

log = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}
"""OpenAI's `type` of a status; of the others below 500 invalid_request_error, from there on server_error."""

SHOWN = 100
"""Most characters of what a client sent that a message repeats."""


class ApiError(Exception):
    """An answer that is a refusal.

    Attributes:
      status: of HTTP.
      param: the field at fault, as in messages[0].content.
      code: what programs look for.
      headers: sent along, such as Retry-After.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(message: str, code: str, status: int = 429, seconds: int = 1) -> ApiError:
    """Come again later."""
    return ApiError(message, status=status, code=code, headers={"Retry-After": str(seconds)})


def shown(value: Any) -> str:
    """A client's value in a message: short, and on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def path(parts: tuple[int | str, ...]) -> str | None:
    """("messages", 0, "content") as messages[0].content."""
    named = ""
    for part in parts:
        named += f"[{part}]" if isinstance(part, int) else f".{part}" if named else part
    return named or None


def to_api_error(error: BaseException) -> ApiError:
    """The answer to an exception; one that nobody foresaw is logged, and answered without its text."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, AudioError):
        return ApiError(str(error), code="invalid_audio")
    if isinstance(error, PromptError):
        return ApiError(str(error), param="messages", code="invalid_prompt")
    if isinstance(error, HTTPException):
        return ApiError(str(error.detail), status=error.status_code, headers=error.headers)
    number = uuid.uuid4().hex[:12]
    log.error("error %s", number, exc_info=error)
    return ApiError(f"the server failed; its log has the cause under {number}", status=500, code="internal_error")


def install(app: FastAPI):
    """Has the app answer every exception in this form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        found = to_api_error(error)
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            found.message = f"{request.method} {shown(request.url.path)}: {found.message.lower()}"
        return JSONResponse(found.body(), found.status, found.headers)

    for kind in (ApiError, ValidationError, AudioError, PromptError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _invalid(error: ValidationError) -> ApiError:
    """The first thing wrong with a body, in words."""
    errors = error.errors(include_url=False, include_context=False)
    field = errors[0]["loc"][:1]
    first = max((e for e in errors if e["loc"][:1] == field), key=lambda e: len(_fields(e["loc"])))  # a union's nearest
    if first["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json")
    param = path(_fields(first["loc"]))
    if first["type"] == "missing":
        return ApiError(f"{param}: expected, found nothing", param=param, code="missing_required_parameter")
    same = [other["msg"] for other in errors if path(_fields(other["loc"])) == param]  # of a union, one a kind
    expected = " or ".join(dict.fromkeys(text.removeprefix("Input should be ") for text in same))
    found = shown(first["input"])
    return ApiError(f"{param or 'body'}: expected {expected}, found {found}", param=param, code="invalid_value")


def _fields(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A place without the names that pydantic puts into it for the kinds of a union."""
    return tuple(part for part in loc if isinstance(part, int) or (part.isidentifier() and part not in ("str", "int")))
