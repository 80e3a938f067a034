"""What vLLM would guess, coerce or ignore is refused, as our own endpoint does; what it serves beyond that passes.

The bodies of completions, chats and the tokenizer are checked as the embedded endpoint checks them, and go on to vLLM
byte by byte as they came. Names that vLLM knows and we do not are its own affair; names that neither knows are refused.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from twofour.serve.edge.errors import RequestError, invalid, send_error
from twofour.serve.openai.completions import DEFAULT_MAX_TOKENS, split_prompts
from twofour.serve.openai.formats import grammar_of
from twofour.serve.openai.handlers import from_pydantic
from twofour.serve.openai.parameters import (
    IGNORED,
    IGNORED_IN_MESSAGES,
    IGNORED_IN_PARTS,
    INNER,
    NEUTRAL,
    PART,
    check_names,
    inner,
)
from twofour.serve.openai.parsing import parse
from twofour.serve.openai.prompts.vocabulary import part_text, too_long
from twofour.serve.openai.protocol import (
    MAX_MESSAGES,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    Message,
    ResponseFormat,
    Strict,
    TokenizeRequest,
    check_together,
)
from twofour.serve.openai.sampling import biases, known_ids
from twofour.serve.openai.serving import model_not_found
from twofour.serve.vllm_edge.engine_state import Model, model_of
from twofour.serve.vllm_edge.salts import salted, salted_unseen
from twofour.serve.vllm_edge.shared import shared

LARGE_BYTES = 1 << 16  # a body that is checked in a thread: other requests go on meanwhile
OURS = ("text", "json_object", "json_schema")  # of the formats of an answer; vLLM has more
NOTHING: Mapping[bytes, object] = {b"suffix": "", b"tools": []}
MORE_IN_MESSAGES = frozenset(("tools", "task"))  # that vLLM serves; those of parameters.INNER it serves, too


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
        if scope["method"] != "POST" or not (scope["path"] in MODELS or digest_of_key(scope)):
            return await self._app(scope, receive, send)
        message = await receive()  # whole, for the edge has read it
        try:
            raw = await passed_on(message.get("body", b""), scope)
        except RequestError as error:
            return await send_error(scope, send, error)
        await self._app(scope, after({**message, "body": raw}, receive), send)


def after(first: Event, receive: Receive) -> Receive:
    pending = [first]

    async def receive_first() -> Event:
        return pending.pop() if pending else await receive()

    return receive_first


async def passed_on(raw: bytes, scope: Scope) -> bytes:
    """The body as it goes on to vLLM. Raises RequestError."""
    if scope["path"] in MODELS:
        return await checked(raw, scope)
    return await asyncio.to_thread(salted_unseen, raw, digest_of_key(scope))


async def checked(raw: bytes, scope: Scope) -> bytes:
    model, path, key = model_of(scope), scope["path"], digest_of_key(scope)
    if len(raw) > LARGE_BYTES:
        body = await asyncio.to_thread(check, raw, path, model)
    else:
        body = check(raw, path, model)
    if not isinstance(body, GenerationRequest):
        return raw
    if await grammar_of(body.response_format):  # vLLM compiles it again, and without our limits
        scope["state"]["formatted"] = True  # should vLLM fail at it, the schema is at fault
    raw = await asyncio.to_thread(without_nothing, raw) if len(raw) > LARGE_BYTES else without_nothing(raw)
    return salted(raw, key, body.cache_salt) if key else raw


def digest_of_key(scope: Scope) -> bytes:
    """Empty: no key is asked for."""
    key = scope["state"].get("key")
    return b"" if key is None else bytes.fromhex(shared().settings.digests[key])


def check(raw: bytes, path: str, model: Model) -> Strict:
    body = parse(raw, MODELS[path])
    if getattr(body, "model", None) == "":
        raise model_not_found()
    if isinstance(body, GenerationRequest):
        body.response_format = format_of(body.response_format)
    check_together(body)
    refuse_unknown(body, model.names[path])
    if isinstance(body, GenerationRequest):
        biases(body.logit_bias or {}, model.vocab_size)
        known_ids(body.stop_token_ids or [], model.vocab_size, "stop_token_ids")
        check_amounts(body, model)
    if isinstance(body, DetokenizeRequest):
        known_ids(body.tokens, model.vocab_size, "tokens")
    return body


def format_of(given: Any) -> ResponseFormat | None:
    """One of ours; None: there is none, or it is one that only vLLM has."""
    if given is None or (isinstance(given, dict) and given.get("type") not in (*OURS, None)):
        return None
    try:
        return ResponseFormat.model_validate(given)
    except ValidationError as error:
        raise invalid(f"response_format: {from_pydantic(error)}", "response_format") from error


def refuse_unknown(body: Strict, theirs: frozenset[str]) -> None:
    """What vLLM does not know it ignores: such names are refused, by the rules of our own endpoint."""
    extra = {name: value for name, value in (body.model_extra or {}).items() if name not in theirs}
    check_names(extra, NEUTRAL, IGNORED)
    for place, part in inner(body):
        if isinstance(part, Said):
            check_parts(part, place)
            own = {name: value for name, value in (part.model_extra or {}).items() if name not in INNER[Message]}
            check_names(own, {}, IGNORED_IN_MESSAGES | MORE_IN_MESSAGES, place)
        elif isinstance(part, Strict):
            check_names(part.model_extra or {}, INNER[type(part)], frozenset(), place)


def check_parts(message: Said, place: str) -> None:
    """Texts alone: whether the model reads pictures and sounds, vLLM knows."""
    for index, part in enumerate(message.content if isinstance(message.content, list) else ()):
        if part.get("type") == "text":
            part_text(part)
            own = {name: part[name] for name in part.keys() - PART}
            check_names(own, {}, IGNORED_IN_PARTS, f"{place}content[{index}].")


def check_amounts(body: GenerationRequest, model: Model) -> None:
    """vLLM shortens an answer that cannot fit, in silence. What is certain not to fit is refused here."""
    wanted, tokens = (wanted_of(body), 0) if isinstance(body, Chat) else (wanted_of(body), longest_ids(body, model))
    param = "messages" if isinstance(body, Chat) else "prompt"
    if (body.min_tokens or 0) > (model.context if wanted is None else wanted):
        raise invalid("min_tokens is larger than max_tokens", "min_tokens")
    if tokens + (wanted or 0) > model.context or (tokens == model.context and wanted != 0):
        amount = f"{tokens} tokens" if tokens else "its tokens"
        raise too_long(model.context, f"{amount} with {wanted or 1} more asked for (max_tokens)", param)


def wanted_of(body: GenerationRequest) -> int | None:
    if isinstance(body, Chat):
        return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    assert isinstance(body, Completion)
    return DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens


def longest_ids(body: GenerationRequest, model: Model) -> int:
    """The tokens of the longest prompt that came as token ids. How many a text has, only vLLM finds out."""
    assert isinstance(body, Completion)
    if body.prompt is None:
        if not (body.model_extra or {}).get("prompt_embeds"):
            raise invalid("prompt: a text, token ids, or a list of one of them; none of them empty", "prompt")
        return 0
    ids = [prompt for prompt in split_prompts(body.prompt) if isinstance(prompt, list)]
    for prompt in ids:
        known_ids(prompt, model.vocab_size, "prompt")
    return max(map(len, ids), default=0)


def without_nothing(raw: bytes) -> bytes:
    """null is the default, as OpenAI has it, and some empty values ask for nothing; vLLM takes them for wrong ones."""
    if not any(sign in raw for sign in (b"null", *NOTHING)):
        return raw
    document = json.loads(raw)
    given = {
        name: value for name, value in document.items() if value is not None and NOTHING.get(name.encode()) != value
    }
    return raw if len(given) == len(document) else json.dumps(given).encode()
