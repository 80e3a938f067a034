"""The routes under /v1, and the tokenizer's. Each reads, prepares and answers; the rest is elsewhere."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from twofour.serve.edge.errors import invalid
from twofour.serve.edge.ids import request_id
from twofour.serve.openai import chat, completions
from twofour.serve.openai.answer import Answer
from twofour.serve.openai.bodies import parse
from twofour.serve.openai.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from twofour.serve.openai.sampling import known_ids
from twofour.serve.openai.serving import Caller, Serving, model_not_found
from twofour.serve.openai.vocabulary import Ending, Tokens

router = APIRouter()
STARTED_AT = int(time.time())


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    serving = serving_of(request)
    serving.admission.require_room()
    body = parse(await request.body(), CompletionRequest)
    job, writer = await completions.prepare(serving, body, caller_of(request))
    return Answer(serving, job, writer, body)


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    serving = serving_of(request)
    serving.admission.require_room()
    body = parse(await request.body(), ChatRequest)
    job, writer = await chat.prepare(serving, body, caller_of(request))
    return Answer(serving, job, writer, body)


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [describe(serving_of(request))]}


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    serving = serving_of(request)
    if model != serving.config.served_model_name:
        raise model_not_found()
    return describe(serving)


@router.post("/tokenize")
async def tokenize(request: Request) -> dict[str, Any]:
    serving = serving_of(request)
    body = parse(await request.body(), TokenizeRequest)
    serving.check(body)
    serving.check_model(body.model)
    tokens = await tokens_of(serving, body)
    pieces = serving.vocabulary.pieces(tokens) if body.return_token_strs else None
    return {"count": len(tokens), "max_model_len": serving.context_limit, "tokens": tokens, "token_strs": pieces}


async def tokens_of(serving: Serving, body: TokenizeRequest) -> Tokens:
    vocabulary, limit = serving.vocabulary, serving.context_limit
    if body.messages is None and body.prompt is not None:
        return await vocabulary.encode(body.prompt, limit, "prompt", body.add_special_tokens is not False)
    if body.messages is None or body.prompt is not None:
        raise invalid("give either prompt or messages", "prompt")
    continues = bool(body.continue_final_message)
    opens = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    return await vocabulary.encode_chat(body.messages, limit, Ending(opens, continues), bool(body.add_special_tokens))


@router.post("/detokenize")
async def detokenize(request: Request) -> dict[str, Any]:
    serving = serving_of(request)
    body = parse(await request.body(), DetokenizeRequest)
    serving.check(body)
    serving.check_model(body.model)
    ids = known_ids(body.tokens, serving.info.vocab_size, "tokens")
    return {"prompt": serving.vocabulary.decode_all(ids)}


def describe(serving: Serving) -> dict[str, Any]:
    return {
        "id": serving.config.served_model_name,
        "object": "model",
        "created": STARTED_AT,
        "owned_by": "twofour",
        "max_model_len": serving.context_limit,
    }


def serving_of(request: Request) -> Serving:
    serving = request.app.state.serving
    assert isinstance(serving, Serving)
    return serving


def caller_of(request: Request) -> Caller:
    return Caller(request_id(request.scope), request.scope["state"]["began_at"], request.scope["state"].get("key"))
