"""Refine: masks and weights together, by coordinate descent over groups of four inputs, then a refit of the values.

With r = v - w the change of a row and H the damped Hessian of `sparsegpt`, the loss of a row is r H r^T. For one group,
all other weights fixed, let t be the four values that would be best if all were kept: t = v - H_gg^-1 c, where
c = (r H)_g. Any other v_g then costs (v_g - t) H_gg (v_g - t)^T more. Dropping the pair Q and keeping the pair P costs
t_Q S t_Q^T with S the inverse of (H_gg^-1)_QQ, and the kept values become t_P + t_Q H_QP H_PP^-1. There are only
six pairs, so every step is exact: the mask is the cheapest pair (of equal ones the lowest indices stay), and the loss
never grows. S and the kept values depend on the group alone: they are small tables, made once, and a step is
the same few products for all rows.

Groups go from left to right. Only the gradient of a block of columns is kept up to date; that of the next block is one
product, so a sweep costs as much as one product of the weight with the Hessian. Sweeps end after a fixed number. The
refit solves each row for the values of its mask by conjugate gradients, preconditioned by the diagonal, again all rows
at once; from its start, the loss only falls. Cf. SparseSwaps (arXiv 2512.10922) and the refit of ALPS (2406.07831).
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from twofour.prune.errors import FactorError
from twofour.prune.format.pattern import GROUP, KEEP
from twofour.prune.solving.sparsegpt import damped

KEPT_PAIRS = tuple(itertools.combinations(range(GROUP), KEEP))  # lowest indices first: they win a tie
DROPPED_PAIRS = tuple(tuple(sorted(set(range(GROUP)) - set(pair))) for pair in KEPT_PAIRS)
SWEEPS = 6
REFIT_STEPS = 10


class Tables(NamedTuple):
    """What the six choices of every group need; t is the best group if all four weights were kept."""

    inverse: Tensor  # [groups, 4, 4]: H_gg^-1
    costs: Tensor  # [groups, 6, 16]: times t t^T, flattened, the cost of each choice
    values: Tensor  # [groups, 24, 4]: times t, the group that each choice makes


def refine(
    weight: Tensor,  # [out, in]
    hessian: Tensor,  # [in, in]
    start: Tensor,  # [out, in], 2:4
    damping: float = 0.01,
    sweeps: int = SWEEPS,
    refit_steps: int = REFIT_STEPS,
    block_columns: int = 128,
) -> Tensor:
    """Return a 2:4 weight [out, in] that loses at most what `start` loses under the damped Hessian.

    Raises FactorError where a group of the damped Hessian has no inverse.
    """
    if block_columns % GROUP:
        raise ValueError(f"block_columns must be divisible by {GROUP}, got {block_columns}")
    dead = hessian.diagonal() == 0
    hessian = damped(hessian, damping)
    target = weight.masked_fill(dead, 0).T.contiguous()  # [in, out]: a column of W is one run of memory
    kept = start.masked_fill(dead, 0).T.contiguous()
    tables = group_tables(hessian)
    for _ in range(sweeps):
        _sweep(target, kept, hessian, tables, block_columns)
    return refit(target, kept, hessian, refit_steps).T.contiguous()


def group_tables(hessian: Tensor) -> Tables:  # [in, in], positive definite
    """Make the tables of every group of four inputs, in float64 and then rounded."""
    count = len(hessian) // GROUP
    groups = hessian.view(count, GROUP, count, GROUP).diagonal(dim1=0, dim2=2).permute(2, 0, 1).double()
    inverse, info = torch.linalg.inv_ex(groups)
    if bool(info.any()) or not bool((inverse.diagonal(dim1=1, dim2=2) > 0).all()):  # NaN is not above 0
        raise FactorError("a group of the Hessian is not positive definite; calibrate on more text")
    costs = groups.new_zeros(count, len(KEPT_PAIRS), GROUP, GROUP)
    values = torch.zeros_like(costs)
    for choice, (kept, dropped) in enumerate(zip(KEPT_PAIRS, DROPPED_PAIRS, strict=True)):
        costs[:, choice, *_square(dropped, dropped)] = torch.linalg.inv(inverse[:, *_square(dropped, dropped)])
        values[:, choice, kept, kept] = 1
        within, across = groups[:, *_square(kept, kept)], groups[:, *_square(kept, dropped)]
        values[:, choice, *_square(kept, dropped)] = torch.linalg.solve(within, across)
    return Tables(*(table.to(hessian.dtype) for table in (inverse, costs.flatten(2), values.flatten(1, 2))))


def refit(target: Tensor, kept: Tensor, hessian: Tensor, steps: int) -> Tensor:  # [in, out], 2:4 [in, out], [in, in]
    """Return `kept` with its non-zero values moved towards the best ones for its mask, and +0.0 elsewhere."""
    dropped = kept == 0
    scale = hessian.diagonal()[:, None]
    slope = (hessian @ (target - kept)).masked_fill_(dropped, 0)
    direction = slope / scale
    size = (slope * direction).sum(0)
    for _ in range(steps):
        bent = (hessian @ direction).masked_fill_(dropped, 0)
        step = _ratio(size, (direction * bent).sum(0))
        kept = torch.addcmul(kept, step, direction)
        slope.addcmul_(step, bent, value=-1)
        downhill = slope / scale
        size, before = (slope * downhill).sum(0), size
        direction = torch.addcmul(downhill, _ratio(size, before), direction)
    return kept.masked_fill(dropped, 0)


def _sweep(target: Tensor, kept: Tensor, hessian: Tensor, tables: Tables, block_columns: int) -> None:
    """Go once through all groups of `kept`, in place."""
    change = kept - target
    for start in range(0, len(kept), block_columns):
        block = slice(start, min(start + block_columns, len(kept)))
        slope = hessian[block] @ change
        change[block] += _descend(kept[block], slope, hessian[block, block], tables, start // GROUP)


def _descend(kept: Tensor, slope: Tensor, hessian: Tensor, tables: Tables, first_group: int) -> Tensor:
    """Choose the groups of a block anew, in place, and return by how much its weights changed."""
    moves = torch.empty_like(kept)
    for start in range(0, len(kept), GROUP):
        stop = start + GROUP
        group = _choose(kept[start:stop], slope[start:stop], tables, first_group + start // GROUP)
        moves[start:stop] = group - kept[start:stop]
        kept[start:stop] = group
        slope[stop:].addmm_(hessian[stop:, start:stop], moves[start:stop])
    return moves


def _choose(kept: Tensor, slope: Tensor, tables: Tables, group: int) -> Tensor:  # [4, out], [4, out] -> [4, out]
    best = torch.addmm(kept, tables.inverse[group], slope, alpha=-1)
    costs = tables.costs[group] @ (best[:, None] * best).flatten(0, 1)  # [6, out]
    made = (tables.values[group] @ best).unflatten(0, (len(KEPT_PAIRS), GROUP))  # [6, 4, out]
    chosen: Tensor = made.gather(0, costs.argmin(0).expand(1, GROUP, -1))[0]
    return chosen


def _square(rows: tuple[int, ...], columns: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Index the rows and columns of a small matrix."""
    return torch.tensor(rows)[:, None], torch.tensor(columns)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Divide; a row that is already solved, 0 / 0, gets 0."""
    return torch.where(below > 0, above / below, 0)
