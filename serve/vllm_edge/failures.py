"""vLLM's errors in our form: OpenAI's four fields, a status that clients act on rightly, and nothing of the inside.

Only answers of 400 and more are held back and written anew; all others pass as they come.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofour.serve.edge.errors import (
    RequestError,
    internal,
    invalid,
    not_followed,
    not_ready,
    overloaded,
    send_error,
    shutting_down,
    unauthorized,
    unsupported,
)
from twofour.serve.edge.ids import request_id
from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.openai.handlers import message_for
from twofour.serve.openai.parameters import DESCRIBE
from twofour.serve.openai.prompts.vocabulary import too_long
from twofour.serve.openai.serving import model_not_found

FIELDS = {"message", "type", "param", "code"}
MAX_BYTES = 1 << 16  # of an error that are read
MAX_MESSAGE = 300  # characters
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
NO_ROUTE = ("", "Not Found")
FULL = ("busy", "backlog", "queue")  # words of an answer 503 that says so
# Words of vLLM -> what we say to that. Its own name the flags of its server.
UNSUPPORTED = (
    ("--trust-request-chat-template", unsupported("chat_template", "the template is the operator's")),
    ("tool-call-parser", unsupported("tools", DESCRIBE)),
    ("FIM completion", unsupported("suffix")),
    ("is not a multimodal model", unsupported("messages", "this model reads text alone")),
)
TOO_LONG = re.compile(r"maximum (?:context|model) length (?:is|of) (\d+)", re.IGNORECASE)
PYDANTIC = re.compile(r"'msg': (?:'([^']*)'|\"([^\"]*)\")")
QUOTED = re.compile(r"(, )?'?(input|input_value)'?[:=].*|\(parameter=.*", re.DOTALL)


class Failures:
    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed: list[int] = []
        body = bytearray()

        async def pass_or_hold(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                failed.append(message["status"])
            elif not failed:
                await send(message)
            elif len(body) < MAX_BYTES:
                body.extend(message.get("body", b""))

        await self._app(scope, receive, pass_or_hold)
        if failed:
            await send_error(scope, send, self._error(failed[0], bytes(body), scope))

    def _error(self, status: int, body: bytes, scope: Scope) -> RequestError:
        if status >= 500 and self._lifecycle.draining:
            return shutting_down()
        return translated(status, body, scope)


def translated(status: int, body: bytes, scope: Scope) -> RequestError:
    """status: that of the answer; an error within a stream says its own."""
    error = fields(body)
    if error.keys() == FIELDS and isinstance(error["code"], str | None):
        return already_ours(status, error)
    status = error["code"] if isinstance(error.get("code"), int) else status
    message, param = str(error.get("message") or ""), param_of(error)
    if status >= 500:
        return of_the_server(status, message, scope)
    if status == 401:
        return unauthorized()
    if status == 403:  # a path that the operator has not opened; no other key would
        return RequestError(403, reason(message), param=param)
    if status == 404 and param in (None, "model") and "model" in message.lower():
        return model_not_found()
    if status == 405:
        return RequestError(405, message_for(405, scope["path"]), headers=allow(scope))
    if status == 404:
        return RequestError(404, message_for(404, scope["path"]) if message in NO_ROUTE else reason(message))
    if found := TOO_LONG.search(message):
        return too_long(int(found[1]), "it has more", param_of_length(scope))
    for words, error_of in UNSUPPORTED:
        if words in message:
            return error_of
    return invalid(f"{param}: {reason(message)}" if param else reason(message), param)


def fields(body: bytes) -> Mapping[str, Any]:
    """Of the error, in whatever form it is: {"error": {...}}, {"error": "..."}, {"detail": ...}, {"message": ...}."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document)
    return error if isinstance(error, dict) else {"message": error}


def already_ours(status: int, error: Mapping[str, Any]) -> RequestError:
    kept = {name: error[name] for name in ("type", "param", "code")}
    return RequestError(status, error["message"], **kept, headers={"Retry-After": "1"} if status == 503 else {})


def of_the_server(status: int, message: str, scope: Scope) -> RequestError:
    """What went wrong inside is in the log, and for nobody else."""
    if status == 501:
        return RequestError(400, "this model does not serve that; see GET /v1/models", code="unsupported_parameter")
    if "after shutdown" in message:
        return shutting_down()
    if status == 503 and any(word in message.lower() for word in FULL):
        return overloaded("too many requests are under way; try again shortly")
    if status == 503 or "EngineCore" in message or "EngineDead" in message:
        return not_ready("the engine does not answer; try again shortly")
    return not_followed() if scope["state"].get("formatted") else internal(request_id(scope))


def param_of(error: Mapping[str, Any]) -> str | None:
    """The field of the request: `body.max_tokens` is max_tokens, `stop.0` is stop."""
    parts = str(error.get("param") or "").removeprefix("body").strip(".").split(".")
    return parts[0].partition("[")[0][:100] or None


def param_of_length(scope: Scope) -> str:
    return "messages" if scope["path"] == "/v1/chat/completions" else "prompt"


def reason(message: str) -> str:
    """One line, without what was sent."""
    if found := PYDANTIC.search(message):
        message = found[1] or found[2]
    line = QUOTED.sub("", message.strip().partition("\n")[0]).strip()
    return line[:MAX_MESSAGE] or "the request is not valid; see the documentation"


def allow(scope: Scope) -> dict[str, str]:
    """The methods of a path, which vLLM's answer leaves out."""
    routes = scope["app"].routes
    asked = [{**scope, "method": method} for method in METHODS]
    found = [one["method"] for one in asked if any(route.matches(one)[0] is Match.FULL for route in routes)]
    return {"Allow": ", ".join(found)}
