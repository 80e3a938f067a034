"""The routes under /v1, and those of the tokenizer. Each only says who answers."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from twofour.serve.edge.ids import request_id
from twofour.serve.openai import chat, completions
from twofour.serve.openai.answers.answer import Answer
from twofour.serve.openai.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from twofour.serve.openai.serving import Caller, Serving, model_not_found
from twofour.serve.openai.tokenizing import answer, detokenized, tokenized

router = APIRouter()
STARTED_AT = int(time.time())


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    return Answer(serving_of(request), caller_of(request), CompletionRequest, completions.prepare)


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    return Answer(serving_of(request), caller_of(request), ChatRequest, chat.prepare)


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    return await answer(serving_of(request), caller_of(request), request.receive, TokenizeRequest, tokenized)


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    return await answer(serving_of(request), caller_of(request), request.receive, DetokenizeRequest, detokenized)


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [model_card(serving_of(request))]}


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    serving = serving_of(request)
    if model != serving.config.served_model_name:
        raise model_not_found()
    return model_card(serving)


def model_card(serving: Serving) -> dict[str, Any]:
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
