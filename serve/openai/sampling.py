"""How the client wants its text continued, as the engine understands it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from twofour.serve.edge.errors import invalid
from twofour.serve.engine.types import Sampling
from twofour.serve.openai.prompts.vocabulary import Tokens, too_long
from twofour.serve.openai.protocol import INT64, GenerationRequest


def sampling_of(
    body: GenerationRequest,
    vocab_size: int,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    grammar: str | None = None,
) -> Sampling:
    """What the client asked for, with None replaced by the neutral value."""
    if (body.min_tokens or 0) > max_tokens:
        raise invalid("min_tokens is larger than max_tokens", "min_tokens")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=biases(body.logit_bias or {}, vocab_size),
        seed=body.seed,
        stop_token_ids=known_ids(body.stop_token_ids or [], vocab_size, "stop_token_ids"),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def biases(given: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    if not all(key.isascii() and key.isdigit() and len(key) < 12 for key in given):
        raise invalid("logit_bias: the keys must be token ids", "logit_bias")
    ids = known_ids([int(key) for key in given], vocab_size, "logit_bias")
    return dict(zip(ids, given.values(), strict=True))


def known_ids(ids: Sequence[int], vocab_size: int, param: str) -> Tokens:
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise invalid(f"{param}: token ids are integers from 0 to {vocab_size - 1}", param)
    return tuple(ids)


def max_output_tokens(limit: int, prompt_tokens: int, wanted: int | None, param: str) -> int:
    """How many tokens may be generated. What does not fit is refused, never shortened in silence."""
    if prompt_tokens > limit or (prompt_tokens == limit and wanted != 0):
        raise too_long(limit, f"{prompt_tokens} tokens", param)
    if wanted is not None and prompt_tokens + wanted > limit:
        raise too_long(limit, f"{prompt_tokens} tokens with {wanted} more asked for (max_tokens)", param)
    return limit - prompt_tokens if wanted is None else wanted


def nth(sampling: Sampling, index: int) -> Sampling:
    """The n choices of a prompt have consecutive seeds."""
    if sampling.seed is None or index == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + index) % INT64)


def stops_of(body: GenerationRequest) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
