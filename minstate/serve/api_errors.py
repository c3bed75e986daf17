"""What goes wrong, in the shape that OpenAI's clients expect: a status, and `{"error": {"message", "type", ...}}`."""

import logging
from typing import Any

from pydantic import ValidationError

from minstate.errors import (
    BadMessage,
    BadValue,
    ContextOverflow,
    EngineClosed,
    OutOfPages,
    TurnTimeout,
    UnsupportedModel,
    UnsupportedSchema,
)

NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients would otherwise ask for the same work again
KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable_error"}


class ApiError(Exception):
    """An answer with an error's status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers=None):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def api_error(error: Exception) -> ApiError:
    """The answer to a request during which `error` was raised. What is nobody's request's fault is not told in full."""
    match error:
        case ApiError():
            return error
        case ValidationError():
            return _invalid(error)
        case ContextOverflow():
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case OutOfPages():
            return ApiError(400, str(error), code="kv_pool_exceeded")
        case TurnTimeout():
            return ApiError(408, "the turn took longer than this server allows", code="timeout", headers=NO_RETRY)
        case EngineClosed():
            return ApiError(503, "the server is shutting down", code="shutting_down", headers=NO_RETRY)
        case BadMessage() | BadValue() | UnsupportedSchema() | UnsupportedModel():
            return ApiError(400, str(error))
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return ApiError(500, f"the server failed: {type(error).__name__}", headers=NO_RETRY)


def _invalid(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request's fields."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    return ApiError(400, f"Invalid {param}: {first['msg']}", param=param)
