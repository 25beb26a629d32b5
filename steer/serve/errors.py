"""What a client did wrong, or the server, in the shape of OpenAI's errors."""

from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class Refusal(ValueError):
    """A request that is not answered, and why.

    Attributes:
        status: Of HTTP.
        param: The field that is to blame, where one is.
        code: For programs.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """As OpenAI's errors are."""
        kind = KINDS.get(self.status, "invalid_request_error")
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    def response(self) -> JSONResponse:
        """The whole answer."""
        again = {"Retry-After": "1"} if self.status in (429, 503) else None
        return JSONResponse(self.body(), self.status, again)


def of_validation(error: ValidationError) -> Refusal:
    """The first thing that a request's JSON has wrong; names the field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"{field}: not supported by this server; leave it out"
        return Refusal(400, message, param=field, code="unsupported_parameter")
    message = f"{field}: {first['msg']}" if field else first["msg"]
    return Refusal(400, message, param=field or None)


async def on_refusal(_: Request, refusal: Exception) -> JSONResponse:
    """Starlette's handler of `Refusal`."""
    assert isinstance(refusal, Refusal)
    return refusal.response()


async def on_http(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler of its own errors: no such route, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return Refusal(error.status_code, message).response()


async def on_fault(_request: Request, _error: Exception) -> JSONResponse:
    """Starlette's handler of what should not happen; it goes into the log whole."""
    return Refusal(500, "the server failed at this request; its log says how").response()
