"""The tokens of a text or a chat, and back. These requests are admitted and ended as generations are."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive

from twofour.serve.edge.errors import RequestError, invalid
from twofour.serve.openai.answers.dumps import dumps
from twofour.serve.openai.answers.owned import body_of, owned
from twofour.serve.openai.prompts.vocabulary import Ending, Tokens
from twofour.serve.openai.protocol import MAX_COUNTED_TOKENS, DetokenizeRequest, TokenizeRequest
from twofour.serve.openai.sampling import known_ids
from twofour.serve.openai.serving import Caller, Serving

Request = TypeVar("Request", bound=TokenizeRequest | DetokenizeRequest)
Find = Callable[[Serving, Request], Awaitable[dict[str, Any]]]


async def answer(
    serving: Serving, caller: Caller, receive: Receive, model: type[Request], find: Find[Request]
) -> Response:
    with serving.admission.place():
        content = await owned(serving, caller, receive, found(serving, await body_of(receive), model, find))
    return Response(content, media_type="application/json")


async def found(serving: Serving, raw: bytes, model: type[Request], find: Find[Request]) -> str:
    async with serving.turn(len(raw)):
        document = await find(serving, await serving.parsed(raw, model))
        return await serving.vocabulary.threads.run_if_large(len(raw), dumps, document)


async def tokenized(serving: Serving, body: TokenizeRequest) -> dict[str, Any]:
    tokens, vocabulary = await tokens_of(serving, body), serving.vocabulary
    strings = (
        await vocabulary.threads.run(len(tokens), vocabulary.token_strings, tokens) if body.return_token_strs else None
    )
    return {"count": len(tokens), "max_model_len": serving.context_limit, "tokens": tokens, "token_strs": strings}


async def tokens_of(serving: Serving, body: TokenizeRequest) -> Tokens:
    """A text may be longer than the model's context: clients that shorten it have to know by how much."""
    vocabulary, limit = serving.vocabulary, max(serving.context_limit, MAX_COUNTED_TOKENS)
    if body.messages is None and body.prompt is not None:
        special = body.add_special_tokens is not False
        return within(limit, await vocabulary.encode(body.prompt, limit, "prompt", special, too_many), "prompt")
    if body.messages is None or body.prompt is not None:
        raise invalid("give either prompt or messages", "prompt")
    continues = bool(body.continue_final_message)
    opens = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    ending = Ending(opens, continues)
    special = bool(body.add_special_tokens)
    tokens = await vocabulary.encode_chat(body.messages, limit, ending, special, too_many)
    return within(limit, tokens, "messages")


def within(limit: int, tokens: Tokens, param: str) -> Tokens:
    if len(tokens) > limit:
        raise too_many(limit, f"{len(tokens)} tokens", param)
    return tokens


async def detokenized(serving: Serving, body: DetokenizeRequest) -> dict[str, Any]:
    ids = known_ids(body.tokens, serving.info.vocab_size, "tokens")
    vocabulary = serving.vocabulary
    return {"prompt": await vocabulary.threads.run(len(ids), vocabulary.decode_all, ids)}


def too_many(limit: int, amount: str, param: str) -> RequestError:
    return invalid(f"{param}: {amount}, where {limit} are counted at a time; send it in parts", param)
