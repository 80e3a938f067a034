"""Errors that carry their HTTP answer, in the shape of OpenAI's `Error` schema: four fields, never fewer."""

import json
from collections.abc import Mapping

from starlette.types import Scope, Send

from twofour.prune.errors import TwofourError

Headers = Mapping[str, str]
INVALID = "invalid_request_error"
SERVER = "server_error"
CLOSE: Headers = {"Connection": "close"}


class RequestError(TwofourError):
    """An answer other than success: its status, OpenAI's type and code, and the parameter at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.param = status, type, code, param
        self.headers: Headers = headers or {}

    @property
    def reason(self) -> str:
        """A word for metrics and logs, of a small fixed set."""
        return self.code or self.type

    def body(self) -> bytes:
        fields = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": fields}).encode()


def invalid(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    return RequestError(400, message, param=param, code=code)


def unsupported(param: str, remedy: str = "leave it out") -> RequestError:
    return invalid(f"{param} is not supported by this server; {remedy}", param, "unsupported_parameter")


def unauthorized() -> RequestError:
    message = 'missing or wrong API key; send "Authorization: Bearer KEY"'
    return RequestError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def body_too_large(limit_bytes: int) -> RequestError:
    message = f"the request body is larger than {limit_bytes} bytes; send a shorter one"
    return RequestError(413, message, code="request_too_large", headers={"Connection": "close"})


def overloaded(message: str) -> RequestError:
    return RequestError(503, message, type=SERVER, code="engine_overloaded", headers={"Retry-After": "1"})


def crowded() -> RequestError:
    message = "the server has as many connections as it can hold; try again shortly"
    return RequestError(503, message, type=SERVER, code="engine_overloaded", headers={"Retry-After": "1", **CLOSE})


def not_ready(message: str, headers: Headers | None = None) -> RequestError:
    return RequestError(503, message, type=SERVER, code="not_ready", headers={"Retry-After": "1", **(headers or {})})


def timed_out(deadline_s: float) -> RequestError:
    message = f"the request took longer than {deadline_s:g} s; ask for fewer tokens"
    return RequestError(504, message, type=SERVER, code="timeout", headers={"x-should-retry": "false"})


def internal(request_id: str) -> RequestError:
    return RequestError(500, f"internal error; the log has it under request id {request_id}", type=SERVER)


def shutting_down() -> RequestError:
    return not_ready("the server is shutting down; try again shortly", CLOSE)


def not_finite() -> RequestError:
    message = "the model's logits are not finite for this prompt; use another prompt, or check the model"
    return RequestError(500, message, type=SERVER, code="non_finite", headers={"x-should-retry": "false"})


def not_followed() -> RequestError:
    message = "response_format: the schema cannot be followed with this model's tokens; write a simpler one"
    return invalid(message, "response_format")


async def send_error(scope: Scope, send: Send, error: RequestError) -> None:
    note_rejection(scope, error)
    body = error.body()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def note_rejection(scope: Scope, error: RequestError) -> None:
    """Leave the reason where the access log and the metrics find it."""
    scope.setdefault("state", {})["rejection"] = error.reason
