"""The 2:4 rule: in every group of four consecutive inputs of a row, at most two weights are not zero."""

from typing import NamedTuple

import torch
from torch import Tensor

from twofour.prune.errors import PatternError

KEEP, GROUP = 2, 4


class Violation(NamedTuple):
    """The first group that breaks the rule: its row and its first column."""

    row: int
    column: int


def groups(matrix: Tensor) -> Tensor:  # [out, in] -> [out, in / 4, 4]
    """View a matrix as groups of four consecutive inputs. Raises PatternError where `in` is not divisible by 4."""
    if matrix.shape[-1] % GROUP:
        raise PatternError(
            f"2:4 needs a number of inputs divisible by {GROUP}, got {matrix.shape[-1]}; leave this linear dense"
        )
    grouped: Tensor = matrix.unflatten(-1, (-1, GROUP))
    return grouped


def mask_from_scores(scores: Tensor) -> Tensor:  # [out, in] -> bool [out, in]
    """Keep the two highest scores of every group; of equal scores the lowest index wins."""
    order = groups(scores).argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(order, dtype=torch.bool)
    return mask.scatter_(-1, order[..., :KEEP], True).flatten(-2)


def first_violation(weight: Tensor) -> Violation | None:
    """Find the first group, by row then column, with more than two non-zero weights. -0.0 counts as zero."""
    bad = (groups(weight) != 0).sum(-1) > KEEP  # [out, in / 4]
    if not bad.any():
        return None
    row, group = (int(i) for i in bad.nonzero()[0])
    return Violation(row, group * GROUP)


def require(weight: Tensor, name: str) -> None:
    """Raise PatternError, naming the first bad group, unless the weight is 2:4."""
    if violation := first_violation(weight):
        row, column = violation
        raise PatternError(
            f'{name} is not 2:4 at row {row}, columns {column}-{column + GROUP - 1}; run "twofour prune" first'
        )
