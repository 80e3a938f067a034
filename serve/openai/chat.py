"""Chat completions: from messages to a job through the model's own template, and from deltas to choices."""

from collections.abc import Sequence

from twofour.serve.edge.errors import invalid
from twofour.serve.engine.types import Logprob
from twofour.serve.openai.answers.choice import Delta
from twofour.serve.openai.answers.generation import Job
from twofour.serve.openai.answers.replies import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    TokenLogprob,
    TopLogprob,
    finish_reason,
    finite,
)
from twofour.serve.openai.formats import grammar_of
from twofour.serve.openai.prompts.spelling import text_of
from twofour.serve.openai.prompts.vocabulary import Tokens, Vocabulary
from twofour.serve.openai.protocol import ChatRequest, Message
from twofour.serve.openai.sampling import max_output_tokens, sampling_of
from twofour.serve.openai.serving import Caller, Serving


async def prepare(serving: Serving, body: ChatRequest, caller: Caller) -> tuple[Job, "ChatWriter"]:
    tokens = await tokenise(serving, body.messages)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = max_output_tokens(serving.context_limit, len(tokens), wanted, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    grammar = await grammar_of(body.response_format)
    sampling = sampling_of(body, serving.info.vocab_size, max_tokens, logprobs, grammar=grammar)
    job = serving.job(caller, body, [(tokens, sampling)])
    return job, ChatWriter(serving.vocabulary, bool(body.logprobs))


async def tokenise(serving: Serving, messages: Sequence[Message]) -> Tokens:
    tokens = await serving.vocabulary.encode_chat(messages, serving.context_limit)
    if not tokens:
        raise invalid("the chat template makes an empty prompt of these messages", "messages")
    return tokens


class ChatWriter:
    id_prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, vocabulary: Vocabulary, logprobs: bool) -> None:
        self._vocabulary, self._logprobs = vocabulary, logprobs

    def whole(self, delta: Delta) -> ChatChoice:
        return {
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": self._scores(delta),
            "finish_reason": finish_reason(delta.finish),
        }

    def opening(self, index: int) -> Sequence[ChatChunkChoice]:
        delta: ChatDelta = {"role": "assistant", "content": ""}
        return ({"index": index, "delta": delta, "logprobs": None, "finish_reason": None},)

    def chunks(self, delta: Delta) -> Sequence[ChatChunkChoice]:
        """The text, then the end: strict clients expect the end in an empty delta."""
        chunks: list[ChatChunkChoice] = []
        if delta.text or delta.logprobs:
            content: ChatDelta = {"content": delta.text}
            scores = self._scores(delta)
            chunks.append({"index": delta.index, "delta": content, "logprobs": scores, "finish_reason": None})
        if delta.finish is not None:
            reason = finish_reason(delta.finish)
            chunks.append({"index": delta.index, "delta": {}, "logprobs": None, "finish_reason": reason})
        return chunks

    def _scores(self, delta: Delta) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        return {"content": [self._score(logprob) for logprob in delta.logprobs], "refusal": None}

    def _score(self, logprob: Logprob) -> TokenLogprob:
        top = [self._one(token, value) for token, value in logprob.top]
        return {**self._one(logprob.token, logprob.logprob), "top_logprobs": top}

    def _one(self, token: int, logprob: float) -> TopLogprob:
        spelling = self._vocabulary.spelling
        text, shown = text_of(spelling.bytes_of(token)), spelling.shown_bytes(token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(shown)}
