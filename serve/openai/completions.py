"""Text completions: from a checked body to a job, and from deltas to choices."""

from collections.abc import Sequence
from typing import Any

from twofour.serve.edge.errors import invalid
from twofour.serve.engine.types import Logprob, Sampling
from twofour.serve.openai.answers.choice import Delta
from twofour.serve.openai.answers.generation import Job
from twofour.serve.openai.answers.replies import CompletionChoice, CompletionLogprobs, finish_reason, finite
from twofour.serve.openai.formats import grammar_of
from twofour.serve.openai.prompts.spelling import is_whole, offsets, text_of
from twofour.serve.openai.prompts.vocabulary import Tokens, Vocabulary
from twofour.serve.openai.protocol import MAX_PROMPTS, CompletionRequest
from twofour.serve.openai.sampling import known_ids, max_output_tokens, sampling_of
from twofour.serve.openai.serving import Caller, Serving

DEFAULT_MAX_TOKENS = 16


async def prepare(serving: Serving, body: CompletionRequest, caller: Caller) -> tuple[Job, "CompletionWriter"]:
    threads = serving.vocabulary.threads
    given = await threads.run_if_large(len(body.prompt), split_prompts, body.prompt)
    special = body.add_special_tokens is not False
    tokens = [await tokenise(serving, prompt, special) for prompt in given]
    wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    grammar = await grammar_of(body.response_format)
    prompts = [(ids, continuation(serving, body, len(ids), wanted, grammar)) for ids in tokens]
    job = serving.job(caller, body, prompts)
    echoes = [await echo_of(serving, prompt) if body.echo else None for prompt in given for _ in range(job.n)]
    writer = CompletionWriter(serving.vocabulary, job, echoes, body.logprobs is not None)
    return job, writer


def continuation(
    serving: Serving, body: CompletionRequest, prompt_tokens: int, wanted: int, grammar: str | None
) -> Sampling:
    max_tokens = max_output_tokens(serving.context_limit, prompt_tokens, wanted, "prompt")
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
    vocab_size = serving.info.vocab_size
    return await serving.vocabulary.threads.run_if_large(len(prompt), known_ids, prompt, vocab_size, "prompt")


async def echo_of(serving: Serving, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return await serving.vocabulary.threads.run(len(prompt), serving.vocabulary.decode_all, prompt)


class CompletionWriter:
    """Writes the prompt before the first text of each choice, if it is to be echoed."""

    id_prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, vocabulary: Vocabulary, job: Job, echoes: Sequence[str | None], logprobs: bool) -> None:
        self._vocabulary, self._job, self._logprobs = vocabulary, job, logprobs
        self._echoes, self._echoed = echoes, [echo is None for echo in echoes]

    def opening(self, index: int) -> Sequence[CompletionChoice]:
        return ()

    def chunks(self, delta: Delta) -> Sequence[CompletionChoice]:
        return (self.whole(delta),)

    def whole(self, delta: Delta) -> CompletionChoice:
        logprobs = self._scores(delta) if self._logprobs else None
        echo = "" if self._echoed[delta.index] else self._echo(delta.index)
        self._echoed[delta.index] = True
        return {
            "index": delta.index,
            "text": echo + delta.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(delta.finish),
        }

    def _echo(self, index: int) -> str:
        return self._echoes[index] or ""

    def _scores(self, delta: Delta) -> CompletionLogprobs:
        """Of the new tokens; the first time, after those of the prompt if it is echoed."""
        scored = list(zip(self._job.prompts[delta.index].tokens, delta.prompt_logprobs, strict=False))
        echo = self._echo(delta.index)
        begun = offsets(echo, [self._vocabulary.spelling.bytes_of(token) for token, _ in scored])
        begun += [len(echo) + offset for offset in delta.offsets]
        scored += [(logprob.token, logprob) for logprob in delta.logprobs]
        return {
            "text_offset": begun,
            "token_logprobs": [None if score is None else finite(score.logprob) for _, score in scored],
            "tokens": [self._name(token) for token, _ in scored],
            "top_logprobs": [None if score is None else self._top(score) for _, score in scored],
        }

    def _top(self, score: Logprob) -> dict[str, float]:
        """By name, best first, always with the token itself. Of several with one name the token itself keeps it, or
        the best of them."""
        values = dict((*score.top, (score.token, score.logprob)))
        named: dict[str, int] = {self._name(score.token): score.token}
        for token in values:
            named.setdefault(self._name(token), token)
        own = {token: name for name, token in named.items()}
        return {own.get(token, f"token_id:{token}"): finite(value) for token, value in values.items()}

    def _name(self, token: int) -> str:
        """The text of the token; in OpenAI's notation if it is a part of a character."""
        raw = self._vocabulary.spelling.bytes_of(token)
        return text_of(raw) if is_whole(raw) else f"bytes:{text_of(raw)}"
