"""What vLLM would guess, coerce or ignore is refused, as our own endpoint does; what it serves beyond that passes.

The bodies of completions, chats and the tokenizer are checked as the embedded endpoint checks them, and go on to vLLM
byte by byte as they came. Names that vLLM knows and we do not are its own affair; names that neither knows are refused.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofour.serve.edge.errors import RequestError, invalid, send_error
from twofour.serve.openai.completions import split_prompts
from twofour.serve.openai.handlers import from_pydantic
from twofour.serve.openai.parameters import IGNORED, INNER, NEUTRAL, check_names
from twofour.serve.openai.parsing import parse
from twofour.serve.openai.prompts.vocabulary import too_long
from twofour.serve.openai.protocol import (
    MAX_MESSAGES,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    ResponseFormat,
    Strict,
    TokenizeRequest,
    check_together,
)
from twofour.serve.openai.sampling import biases, known_ids
from twofour.serve.vllm_edge.engine_state import Model, model_of

LARGE_BYTES = 1 << 16  # a body that is checked in a thread: other requests go on meanwhile
OURS = ("text", "json_object", "json_schema")  # of the formats of an answer; vLLM has more


class Said(Strict):
    """A message, with the roles and the parts that vLLM serves beyond ours."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def says_something(self) -> "Said":
        if self.content is None and not (self.role == "assistant" and self.model_extra):
            raise ValueError("a message has a content")
        return self


Conversation = Annotated[list[Said], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class Completion(CompletionRequest):
    prompt: str | list[Any] | None = None  # type: ignore[assignment]
    response_format: Any = None


class Chat(ChatRequest):
    messages: Conversation  # type: ignore[assignment]
    response_format: Any = None


class Tokenize(TokenizeRequest):
    messages: Conversation | None = None  # type: ignore[assignment]


MODELS: Mapping[str, type[Strict]] = {
    "/v1/completions": Completion,
    "/v1/chat/completions": Chat,
    "/tokenize": Tokenize,
    "/detokenize": DetokenizeRequest,
}


class Requests:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST" or scope["path"] not in MODELS:
            return await self._app(scope, receive, send)
        message = await receive()  # whole, for the edge has read it
        try:
            raw = await checked(message.get("body", b""), scope)
        except RequestError as error:
            return await send_error(scope, send, error)
        await self._app(scope, after({**message, "body": raw}, receive), send)


def after(first: Message, receive: Receive) -> Receive:
    pending = [first]

    async def receive_first() -> Message:
        return pending.pop() if pending else await receive()

    return receive_first


async def checked(raw: bytes, scope: Scope) -> bytes:
    model, path, key = model_of(scope), scope["path"], scope["state"].get("key")
    if len(raw) > LARGE_BYTES:
        return await asyncio.to_thread(check, raw, path, model, key)
    return check(raw, path, model, key)


def check(raw: bytes, path: str, model: Model, key: int | None) -> bytes:
    """The body as it goes on to vLLM. Raises RequestError."""
    body = parse(raw, MODELS[path])
    check_together(body)
    refuse_unknown(body, model.names[path])
    if not isinstance(body, GenerationRequest):
        return raw
    check_format(body.response_format)
    biases(body.logit_bias or {}, model.vocab_size)
    known_ids(body.stop_token_ids or [], model.vocab_size, "stop_token_ids")
    check_amounts(body, model)
    return raw if key is None else salted(raw, key, body.cache_salt)


def refuse_unknown(body: Strict, theirs: frozenset[str]) -> None:
    """What vLLM does not know it ignores: such names are refused, by the rules of our own endpoint."""
    extra = {name: value for name, value in (body.model_extra or {}).items() if name not in theirs}
    check_names(extra, NEUTRAL, IGNORED)
    if isinstance(body, GenerationRequest) and (options := body.stream_options):
        check_names(options.model_extra or {}, INNER[type(options)], frozenset(), "stream_options.")


def check_format(given: Any) -> None:
    if not isinstance(given, dict) or given.get("type") not in (*OURS, None):
        return
    try:
        asked = ResponseFormat.model_validate(given)
    except ValidationError as error:
        raise invalid(str(from_pydantic(error)), "response_format") from error
    if asked.type == "json_schema" and asked.json_schema is None:
        raise invalid("response_format: json_schema is missing", "response_format")


def check_amounts(body: GenerationRequest, model: Model) -> None:
    """vLLM shortens an answer that cannot fit, in silence. What is certain not to fit is refused here."""
    wanted, tokens, param = body_tokens(body, model)
    if (body.min_tokens or 0) > (
        16 if wanted is None and isinstance(body, CompletionRequest) else wanted or model.context
    ):
        raise invalid("min_tokens is larger than max_tokens", "min_tokens")
    if tokens + (wanted or 0) > model.context:
        raise too_long(model.context, f"{tokens} tokens with {wanted or 0} more asked for (max_tokens)", param)


def body_tokens(body: GenerationRequest, model: Model) -> tuple[int | None, int, str]:
    """The tokens asked for, those of the longest prompt that came as token ids, and the parameter it came in."""
    if isinstance(body, Chat):
        return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens, 0, "messages"
    assert isinstance(body, Completion)
    if body.prompt is None:
        if not (body.model_extra or {}).get("prompt_embeds"):
            raise invalid("prompt: a text, token ids, or a list of one of them; none of them empty", "prompt")
        return body.max_tokens, 0, "prompt"
    ids = [prompt for prompt in split_prompts(body.prompt) if isinstance(prompt, list)]
    for prompt in ids:
        known_ids(prompt, model.vocab_size, "prompt")
    return body.max_tokens, max(map(len, ids), default=0), "prompt"


def salted(raw: bytes, key: int, salt: str | None) -> bytes:
    """The prefix cache is shared among requests of one key. Of two equal names in a document the last counts."""
    return raw.rstrip()[:-1] + b', "cache_salt": ' + json.dumps(f"{key} {salt or ''}").encode() + b"}"
