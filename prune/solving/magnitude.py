"""Magnitude: keep the two largest of every four weights. Needs no text; the baseline that others must beat."""

from torch import Tensor

from twofour.prune.format import pattern


def magnitude(weight: Tensor) -> Tensor:  # [out, in] -> 2:4 [out, in]
    """Zero the two smallest weights of every group of four."""
    return weight.masked_fill(~pattern.mask_from_scores(weight.abs()), 0)
