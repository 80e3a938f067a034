"""From whatever a route raises to an OpenAI error body; never a 422, never `{"detail": ...}`."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from twofour.prune.errors import ServerError
from twofour.serve.edge.errors import RequestError, internal, invalid, not_ready, note_rejection
from twofour.serve.edge.ids import request_id

# Paths that clients may look for here, and what to use instead.
ELSEWHERE = {
    "/v1/responses": "this server has no Responses API; use POST /v1/chat/completions",
    "/v1/embeddings": "this server generates text and has no embeddings; use an embedding model's server",
    "/v1/engines": "engines are called models now; use GET /v1/models",
}
MESSAGES = {404: "no such path; see the documentation for the routes", 405: "this path has no such method"}


def install_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(ServerError, on_server_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_bug)


def respond(request: Request, error: RequestError) -> Response:
    note_rejection(request.scope, error)
    return Response(error.body(), status_code=error.status, media_type="application/json", headers=dict(error.headers))


async def on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return respond(request, error)


async def on_server_error(request: Request, error: Exception) -> Response:
    """The engine is loading, restarting or gone. Its message may hold paths: the log has it."""
    return respond(request, engine_unavailable())


async def on_validation_error(request: Request, error: Exception) -> Response:
    return respond(request, invalid("the request is not valid; see the documentation"))


async def on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = message_for(error.status_code, request.scope["path"])
    return respond(request, RequestError(error.status_code, message, headers=error.headers))


def message_for(status: int, path: str) -> str:
    message = MESSAGES.get(status, "the request was refused")
    if status == 404:
        message = next((hint for known, hint in ELSEWHERE.items() if is_below(path, known)), message)
    return message


async def on_bug(request: Request, error: Exception) -> Response:
    return respond(request, internal(request_id(request.scope)))


def is_below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}/")


def engine_unavailable() -> RequestError:
    return not_ready("the model is not ready; try again shortly")


def from_pydantic(error: ValidationError) -> RequestError:
    """Only the first fault, with its field and position. The value that was sent is not repeated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = first["loc"]
    field = str(location[0]) if location else None
    place = "".join([field or "body", *(f"[{part}]" for part in location[1:] if isinstance(part, int))])
    return invalid(f"{place}: {first['msg'][:200].lower()}", field)
