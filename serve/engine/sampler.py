"""From logits to the next token of each sequence.

In this order, everything in float32:

    repetition penalty     logits of tokens in prompt or output: divided by it if positive, else multiplied
    frequency, presence    subtracted: times the count in the output, and once if it is there at all
    logit_bias             added; then end and stop tokens are excluded before `min_tokens` are there
    grammar                excludes what it does not allow
    temperature            below 1e-5 takes the best here; of equals the lowest id wins, as everywhere below
    min_p, top_k, top_p    each keeps the best by the probabilities that the one before left
    draw                   the first token, by ascending id, whose cumulative probability exceeds u * total

`u` is a function of the seed and of the token's position. So from equal logits a seed makes equal text, whatever else
is in the batch and however often the sequence is preempted. Whether logits are equal is decided elsewhere. On a CPU
they are (runners/tiles.py), unless a race chose otherwise (assembly/order.py). On a GPU kernels are chosen by the
number of tokens in a step, and captured steps attend in other shapes, so the last bits differ. Log probabilities are
those of the model: of the logits before all this.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor

from twofour.prune.errors import NonFiniteError
from twofour.serve.engine.drawing import drawn, scored
from twofour.serve.engine.grammar import NotFollowed
from twofour.serve.engine.sequence import Sequence
from twofour.serve.engine.types import Failure, Logprob, Sampling
from twofour.serve.kernels.cpu.sampling import Draw

NOT_FINITE = "the model's logits are not finite"
GREEDY_BELOW = 1e-5  # smaller temperatures leave only the likeliest token, and would overflow


class Sampled(NamedTuple):
    """The next token of a sequence, or why there is none."""

    token: int = -1
    logprob: Logprob | None = None
    error: str | None = None
    failure: Failure | None = None  # which error it is, where it has a name


def sample(
    logits: Tensor, sequences: list[Sequence], eos: frozenset[int], best: Several[int] | None = None
) -> list[Sampled]:
    """Sample one token for each sequence from its row of `logits` [sequences, vocabulary].

    Rows are drawn from all at once, as they are; those that are adjusted first, in a second turn. `best` are the
    likeliest tokens, where they are known; -1 is a row whose best is not finite.
    """
    adjusts = list(map(_adjusts, sequences))
    draws = [_draw(i, *each) for i, each in enumerate(zip(sequences, adjusts, strict=True))]
    found = [_sampled(id) for id in _drawn(logits, draws, best)]
    adjusting = [i for i, is_adjusted in enumerate(adjusts) if is_adjusted and not found[i].error]
    if adjusting:
        _sample_adjusted(logits[adjusting].float(), adjusting, found, sequences, eos)
    for i, s in enumerate(sequences):
        if s.constraint and not found[i].error:
            with _contained(found, i):
                s.constraint.accept(found[i].token)
    return _with_logprobs(found, logits, sequences)


def _drawn(logits: Tensor, draws: list[Draw], best: Several[int] | None) -> list[int]:
    if best is None:
        return drawn(logits, draws)
    ids = list(best)
    drawing = [how for how in draws if how.temperature and ids[how.row] >= 0]
    for how, id in zip(drawing, drawn(logits, drawing), strict=True):
        ids[how.row] = id
    return ids


def _sample_adjusted(
    rows: Tensor, indices: list[int], found: list[Sampled], sequences: list[Sequence], eos: frozenset[int]
) -> None:
    """Sample for some of the sequences from their rows of logits, which are adjusted in place."""
    for row, i in zip(rows, indices, strict=True):
        with _contained(found, i):
            adjust(row, sequences[i], eos)
    draws = [_draw(row, sequences[i], adjusts=False) for row, i in enumerate(indices)]
    for i, id in zip(indices, drawn(rows, draws), strict=True):
        found[i] = found[i] if found[i].error else _sampled(id)


def _draw(row: int, sequence: Sequence, adjusts: bool) -> Draw:
    """How the token is drawn; of a row that is adjusted first, the best is looked at, to see whether it is finite."""
    s = sequence.sampling
    if adjusts or s.temperature < GREEDY_BELOW:
        return Draw(row, 0.0, 0.0, 0, 1.0, 0.0)
    return Draw(row, s.temperature, s.min_p, s.top_k, s.top_p, uniform(sequence.seed, len(sequence.tokens)))


def _sampled(id: int) -> Sampled:
    return Sampled(id) if id >= 0 else Sampled(error=NOT_FINITE, failure=Failure.NOT_FINITE)


@contextmanager
def _contained(found: list[Sampled], i: int) -> Iterator[None]:
    """A fault in one request ends only that request."""
    try:
        yield
    except torch.AcceleratorError:  # the device is in an undefined state: no request can go on
        raise
    except NotFollowed as error:
        found[i] = Sampled(error=str(error), failure=Failure.NOT_FOLLOWED)
    except Exception as error:
        found[i] = Sampled(error=f"sampling failed: {type(error).__name__}: {error}")


def _with_logprobs(found: list[Sampled], logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
    counts = {i: s.sampling.logprobs for i, s in enumerate(sequences) if not found[i].error}
    wanted = {i: count for i, count in counts.items() if count is not None}
    if wanted:
        scored = logprobs(logits[[*wanted]], [found[i].token for i in wanted], max(wanted.values()))
        for entry, (i, count) in zip(scored, wanted.items(), strict=True):
            found[i] = found[i]._replace(logprob=replace(entry, top=entry.top[:count]))
    return found


def _adjusts(sequence: Sequence) -> bool:
    s = sequence.sampling
    return s.adjusts or sequence.constraint is not None or (s.min_tokens > 0 and sequence.generated < s.min_tokens)


def adjust(row: Tensor, sequence: Sequence, eos: frozenset[int]) -> None:
    """Apply penalties, bias and exclusions to `row` [vocabulary]."""
    s = sequence.sampling
    if s.repetition_penalty != 1:
        seen = _ids(sorted(set(sequence.tokens)), row)
        row[seen] = torch.where(row[seen] > 0, row[seen] / s.repetition_penalty, row[seen] * s.repetition_penalty)
    if s.presence_penalty or s.frequency_penalty:
        times = Counter(sequence.output)
        row[_ids(times, row)] -= s.presence_penalty + s.frequency_penalty * _values(times.values(), row)
    if s.logit_bias:
        row[_ids(s.logit_bias, row)] += _values(s.logit_bias.values(), row)
    if sequence.generated < s.min_tokens:
        row[_ids(stop_ids(s, eos), row)] = -torch.inf
    if sequence.constraint:
        row[~sequence.constraint.allowed().to(row.device)] = -torch.inf
        if row.max() == -torch.inf:
            raise NotFollowed("the grammar cannot be followed: no token is allowed")


def _ids(ids: Iterable[int], row: Tensor) -> Tensor:
    return torch.tensor([*ids], dtype=torch.int64, device=row.device)


def _values(values: Iterable[float], row: Tensor) -> Tensor:
    return torch.tensor([*values], dtype=row.dtype, device=row.device)


def stop_ids(sampling: Sampling, eos: frozenset[int]) -> frozenset[int]:
    """The tokens that end a sequence."""
    return frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos)


def ends(token: int, sampling: Sampling, eos: frozenset[int]) -> bool:
    """Whether it is one of `stop_ids`."""
    return token in sampling.stop_token_ids or (token in eos and not sampling.ignore_eos)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position only."""
    digest = blake2b(struct.pack("<QQ", seed % 2**64, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def logprobs(rows: Tensor, tokens: list[int], count: int) -> list[Logprob]:
    """Log probabilities of one token per row of logits [tokens, vocabulary], and of the `count` likeliest."""
    chosen, ids, values = scored(rows, tokens, count)
    tops = [tuple(zip(*top, strict=True)) for top in zip(ids, values, strict=True)]
    return [Logprob(*entry) for entry in zip(tokens, chosen, tops, strict=True)]


def score_prompt(sequence: Sequence, rows: Tensor) -> None:
    """Note the log probabilities of the next prompt tokens, from the logits of the tokens before them."""
    count, first = sequence.sampling.prompt_logprobs, len(sequence.prompt_logprobs)
    if count is None or not len(rows):
        return
    scored = logprobs(rows, list(sequence.prompt.tokens[first : first + len(rows)]), count)
    if any(isnan(entry.logprob) for entry in scored):
        raise NonFiniteError(NOT_FINITE)
    sequence.prompt_logprobs += scored
