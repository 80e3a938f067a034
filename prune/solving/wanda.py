"""Wanda: a weight counts as much as its size times the norm of its input (Sun et al. 2023, arXiv 2306.11695).

The score is |W_ij| * sqrt(sum_t x_tj^2), compared inside each group of four; kept weights stay as they are.
"""

from torch import Tensor

from twofour.prune.format import pattern


def wanda(weight: Tensor, squares: Tensor) -> Tensor:  # [out, in], [in] -> 2:4 [out, in]
    """Zero the two weights of every group that change the outputs least, each input taken by itself."""
    return weight.masked_fill(~pattern.mask_from_scores(weight.abs() * squares.sqrt()), 0)
