"""From the summed losses of a mixture to the divergence that it will have.

Losses of linears add up only about: what one loses, another has lost already, and the last dense ones that are pruned
lose more than their share. So a few mixtures are measured, and the divergence of others is read off between them, in
straight lines between the square roots, for it bends most near 0; it never falls as the sum grows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """sums, divergences: of the mixtures that were measured, both rising from 0."""

    sums: tuple[float, ...]
    divergences: tuple[float, ...]

    def divergence(self, total: float) -> float:
        """Return what a sum of losses comes to; beyond the last that was measured, what that comes to."""
        return float(np.interp(total**0.5, np.sqrt(self.sums), np.sqrt(self.divergences)) ** 2)

    def total(self, divergence: float) -> float:
        """Return the largest sum of losses that comes to at most this."""
        last = max(n for n, known in enumerate(self.divergences) if known <= divergence)
        if last + 1 == len(self.sums):
            return self.sums[-1]
        low, high = np.sqrt(self.divergences[last : last + 2])
        start, stop = np.sqrt(self.sums[last : last + 2])
        return float((start + (stop - start) * (divergence**0.5 - low) / (high - low)) ** 2)


def through(points: Iterable[tuple[float, float]]) -> Curve:
    """Draw the curve through what was measured: sums of losses, and their divergences."""
    known = sorted({0.0: 0.0, **{total: divergence for total, divergence in points if total > 0}}.items())
    sums, divergences = zip(*known, strict=True)
    return Curve(sums, tuple(float(each) for each in np.maximum.accumulate(divergences)))
