"""From rows of logits to tokens, by temperature, min_p, top_k, top_p and a draw (see sampler.py), and their scores.

The functions here are the definition, for one row, and serve wherever no kernel does: on GPUs, and on processors
without one. On CPUs kernels/cpu/sampling.py draws from all rows at once, by the same rules.
"""

from math import isfinite

import torch
from torch import Tensor

from twofour.serve.kernels.cpu import sampling
from twofour.serve.kernels.cpu.sampling import Draw


def drawn(logits: Tensor, draws: list[Draw]) -> list[int]:
    """Draw one token for each from its row of `logits` [rows, vocabulary]; -1 where the best of it is not finite."""
    if sampling.takes(logits):
        return sampling.draw(logits, draws)
    best, ids = (found.tolist() for found in logits.max(-1))  # NaN wins a maximum
    return [_one(logits[how.row], how, best[how.row], ids[how.row]) for how in draws]


def _one(row: Tensor, how: Draw, best: float, best_id: int) -> int:
    if not isfinite(best):
        return -1
    return best_id if how.temperature == 0 else draw(probabilities(row.float(), how), how.u)


def scored(rows: Tensor, tokens: list[int], top: int) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """Log probabilities of one token per row of logits [tokens, vocabulary]; ids and values of the `top` likeliest."""
    if sampling.takes(rows):
        return sampling.score(rows, tokens, top)
    scores = rows.float().log_softmax(-1)
    chosen = scores.gather(1, torch.tensor(tokens, device=rows.device)[:, None])[:, 0]
    values, ids = ranked(scores, top)
    return chosen.tolist(), ids.tolist(), values.tolist()


def probabilities(row: Tensor, s: Draw) -> Tensor:  # [vocabulary] -> [vocabulary], not normalised
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
