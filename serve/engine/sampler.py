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
from dataclasses import dataclass
from hashlib import blake2b
from math import inf, isnan

import torch
from torch import Tensor

from twofour.prune.errors import NonFiniteError
from twofour.serve.engine.grammar import NotFollowed
from twofour.serve.engine.sequence import Sequence
from twofour.serve.engine.types import Failure, Logprob, Sampling

NOT_FINITE = "the model's logits are not finite"
GREEDY_BELOW = 1e-5  # smaller temperatures leave only the likeliest token, and would overflow


@dataclass(frozen=True)
class Sampled:
    """The next token of a sequence, or why there is none."""

    token: int = -1
    logprob: Logprob | None = None
    error: str | None = None
    failure: Failure | None = None  # which error it is, where it has a name


def sample(logits: Tensor, sequences: list[Sequence], eos: frozenset[int]) -> list[Sampled]:
    """Sample one token for each sequence from its row of `logits` [sequences, vocabulary]."""
    best, ids = logits.max(-1)  # NaN wins a maximum, so `best` tells whether a row can be used
    return [
        _guarded(row, sequence, eos, value, token)
        for row, sequence, value, token in zip(logits, sequences, best.tolist(), ids.tolist(), strict=True)
    ]


def _guarded(row: Tensor, sequence: Sequence, eos: frozenset[int], best: float, best_token: int) -> Sampled:
    """A fault in one request ends only that request."""
    if not abs(best) < inf:
        return Sampled(error=NOT_FINITE, failure=Failure.NOT_FINITE)
    try:
        token = best_token if _takes_best(sequence) else _choose(row.float(), sequence, eos)
        if sequence.constraint:
            sequence.constraint.accept(token)
        count = sequence.sampling.logprobs
        return Sampled(token, None if count is None else logprobs(row[None], [token], count)[0])
    except torch.AcceleratorError:  # the device is in an undefined state: no request can go on
        raise
    except NotFollowed as error:
        return Sampled(error=str(error), failure=Failure.NOT_FOLLOWED)
    except Exception as error:
        return Sampled(error=f"sampling failed: {type(error).__name__}: {error}")


def _takes_best(sequence: Sequence) -> bool:
    """It is greedy, and nothing changes the order of the logits."""
    return sequence.sampling.temperature < GREEDY_BELOW and not _adjusts(sequence)


def _adjusts(sequence: Sequence) -> bool:
    s = sequence.sampling
    penalties = (s.presence_penalty, s.frequency_penalty, s.repetition_penalty - 1)
    return any(penalties) or bool(s.logit_bias or sequence.constraint) or sequence.generated < s.min_tokens


def _choose(row: Tensor, sequence: Sequence, eos: frozenset[int]) -> int:
    if _adjusts(sequence):
        row = adjusted(row, sequence, eos)
    if sequence.sampling.temperature < GREEDY_BELOW:
        return int(row.argmax())
    position = len(sequence.tokens)
    return draw(probabilities(row, sequence.sampling), uniform(sequence.seed, position))


def adjusted(row: Tensor, sequence: Sequence, eos: frozenset[int]) -> Tensor:
    """Apply penalties, bias and exclusions to a copy of `row` [vocabulary]."""
    s, row = sequence.sampling, row.clone()
    if s.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=row.device)
        row[seen] = torch.where(row[seen] > 0, row[seen] / s.repetition_penalty, row[seen] * s.repetition_penalty)
    if sequence.output and (s.presence_penalty or s.frequency_penalty):
        times = torch.tensor(sequence.output, device=row.device).bincount(minlength=len(row))
        row -= s.presence_penalty * (times > 0) + s.frequency_penalty * times
    if s.logit_bias:
        row[torch.tensor(list(s.logit_bias), device=row.device)] += torch.tensor(
            list(s.logit_bias.values()), dtype=row.dtype, device=row.device
        )
    if sequence.generated < s.min_tokens:
        row[torch.tensor(sorted(stop_ids(s, eos)), dtype=torch.int64, device=row.device)] = -torch.inf
    if sequence.constraint:
        row[~sequence.constraint.allowed().to(row.device)] = -torch.inf
        if row.max() == -torch.inf:
            raise NotFollowed("the grammar cannot be followed: no token is allowed")
    return row


def stop_ids(sampling: Sampling, eos: frozenset[int]) -> frozenset[int]:
    """The tokens that end a sequence."""
    return frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos)


def probabilities(row: Tensor, s: Sampling) -> Tensor:  # [vocabulary] -> [vocabulary], not normalised
    """Probabilities after temperature, min_p, top_k and top_p; zero for what these exclude."""
    weights = ((row - row.max()) / s.temperature).exp()
    if s.min_p > 0:
        weights = torch.where(weights >= s.min_p, weights, 0.0)  # the best has weight 1
    if 0 < s.top_k < len(weights):
        weights = _only(weights, ranked(weights[None], s.top_k)[1][0])
    if s.top_p < 1:
        weights = _only(weights, _nucleus(weights, s.top_p))
    return weights


def _only(weights: Tensor, ids: Tensor) -> Tensor:
    return torch.zeros_like(weights).index_copy_(0, ids, weights[ids])


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """The smallest set of best tokens whose share reaches `top_p`; never empty."""
    goal = top_p * weights.sum(dtype=torch.float64)
    for count in (64, 2048, len(weights)):  # a few tokens are nearly always enough, and sorting all is slow
        values, ids = ranked(weights[None], min(count, len(weights)))
        before = values[0].double().cumsum(0) - values[0].double()
        if before[-1] + values[0, -1] >= goal or count >= len(weights):
            break
    keep = before < goal
    keep[0] = True
    return ids[0][keep]


def draw(weights: Tensor, u: float) -> int:
    """The first id whose cumulative weight exceeds `u` (0 <= u < 1) times the total."""
    cumulative = weights.double().cumsum(0)
    return int(torch.searchsorted(cumulative, cumulative[-1:] * u, right=True))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position only."""
    digest = blake2b(struct.pack("<QQ", seed % 2**64, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def logprobs(rows: Tensor, tokens: list[int], count: int) -> list[Logprob]:
    """Log probabilities of one token per row of logits [tokens, vocabulary], and of the `count` likeliest."""
    scores = rows.float().log_softmax(-1)
    chosen = scores.gather(1, torch.tensor(tokens, device=rows.device)[:, None])[:, 0].tolist()
    values, ids = ranked(scores, count)
    tops = [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
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


def ranked(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row [rows, n] and their indices, best first, among equals the lowest index first.

    `topk` is fast and gives the values, but which of equals it takes is open; so the indices are found again.
    """
    count = min(count, rows.shape[1])
    if count == 0:
        return rows[:, :0], rows[:, :0].long()
    lowest = rows.topk(count).values[:, -1:]
    found = [_in_order(row, floor, count) for row, floor in zip(rows, lowest, strict=True)]
    ids = torch.stack(found)
    return rows.gather(1, ids), ids


def _in_order(row: Tensor, floor: Tensor, count: int) -> Tensor:
    candidates = (row >= floor).nonzero()[:, 0]  # ascending ids
    return candidates[row[candidates].argsort(descending=True, stable=True)][:count]
