"""Text completions: from a checked body to a job, and from deltas to choices."""

from collections.abc import Sequence
from typing import Any

from twofour.serve.edge.errors import invalid
from twofour.serve.engine.types import Logprob, Sampling
from twofour.serve.openai.choice import Delta
from twofour.serve.openai.formats import grammar_of
from twofour.serve.openai.generation import Job
from twofour.serve.openai.protocol import MAX_PROMPTS, CompletionRequest
from twofour.serve.openai.replies import CompletionChoice, CompletionLogprobs, finish_reason, finite
from twofour.serve.openai.sampling import known_ids, room, sampling_of
from twofour.serve.openai.serving import Caller, Serving
from twofour.serve.openai.vocabulary import Tokens, Vocabulary

DEFAULT_MAX_TOKENS = 16


async def prepare(serving: Serving, body: CompletionRequest, caller: Caller) -> tuple[Job, "CompletionWriter"]:
    serving.check(body)
    given = split_prompts(body.prompt)
    special = body.add_special_tokens is not False
    tokens = [await tokenise(serving, prompt, special) for prompt in given]
    wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    grammar = await grammar_of(body.response_format)
    prompts = [(ids, continuation(serving, body, len(ids), wanted, grammar)) for ids in tokens]
    job = serving.job(caller, body, prompts)
    echoes = [echo_of(serving, prompt) if body.echo else None for prompt in given for _ in range(job.n)]
    writer = CompletionWriter(serving.vocabulary, job, echoes, body.logprobs is not None)
    return job, writer


def continuation(
    serving: Serving, body: CompletionRequest, prompt_tokens: int, wanted: int, grammar: str | None
) -> Sampling:
    max_tokens = room(serving.context_limit, prompt_tokens, wanted, "prompt")
    scored = body.logprobs if body.echo else None
    return sampling_of(body, serving.info.vocab_size, max_tokens, body.logprobs, scored, grammar)


def split_prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids."""
    if isinstance(prompt, str):
        prompts: list[Any] = [prompt]
    elif prompt and all(type(item) is int for item in prompt):
        prompts = [prompt]
    else:
        prompts = prompt
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise invalid(f"prompt: 1 to {MAX_PROMPTS} prompts, none of them empty", "prompt")
    if not (all(is_text(item) for item in prompts) or all(is_ids(item) for item in prompts)):
        raise invalid("prompt: a text, token ids, or a list of one of them; none of them empty", "prompt")
    return prompts


def is_text(prompt: object) -> bool:
    return isinstance(prompt, str) and prompt != ""


def is_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and len(prompt) > 0 and all(type(token) is int for token in prompt)


async def tokenise(serving: Serving, prompt: str | list[int], special: bool) -> Tokens:
    if isinstance(prompt, str):
        return await serving.vocabulary.encode(prompt, serving.context_limit, "prompt", special)
    return known_ids(prompt, serving.info.vocab_size, "prompt")


def echo_of(serving: Serving, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else serving.vocabulary.decode_all(prompt)


class CompletionWriter:
    """Keeps, for each choice, how far its logprobs have come in the text."""

    id_prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, vocabulary: Vocabulary, job: Job, echoes: Sequence[str | None], logprobs: bool) -> None:
        self._vocabulary, self._job, self._logprobs = vocabulary, job, logprobs
        self._unsaid = list(echoes)
        self._offsets = [0] * len(echoes)

    def opening(self, index: int) -> Sequence[CompletionChoice]:
        return ()

    def chunks(self, delta: Delta) -> Sequence[CompletionChoice]:
        return (self.whole(delta),)

    def whole(self, delta: Delta) -> CompletionChoice:
        logprobs = self._scores(delta) if self._logprobs else None
        echo, self._unsaid[delta.index] = self._unsaid[delta.index], None
        return {
            "index": delta.index,
            "text": (echo or "") + delta.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(delta.finish),
        }

    def _scores(self, delta: Delta) -> CompletionLogprobs:
        """Of the new tokens, after those of the prompt where it is echoed for the first time."""
        scored = list(zip(self._job.prompts[delta.index].tokens, delta.prompt_logprobs, strict=False))
        scored += [(logprob.token, logprob) for logprob in delta.logprobs]
        texts = [self._vocabulary.token_text(token) for token, _ in scored]
        return {
            "text_offset": self._advance(delta.index, texts),
            "token_logprobs": [None if score is None else finite(score.logprob) for _, score in scored],
            "tokens": texts,
            "top_logprobs": [None if score is None else self._top(score) for _, score in scored],
        }

    def _advance(self, index: int, texts: Sequence[str]) -> list[int]:
        offsets = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return offsets

    def _top(self, score: Logprob) -> dict[str, float]:
        """By text; of two tokens with the same text, the likelier. The token itself is always there."""
        top: dict[str, float] = {}
        for token, logprob in (*score.top, (score.token, score.logprob)):
            top.setdefault(self._vocabulary.token_text(token), finite(logprob))
        return top
