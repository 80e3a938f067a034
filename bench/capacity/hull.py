"""Which steps were measured: a plan that needs others extrapolates, and says so.

The convex hull of (decodes, prompt tokens, tokens of the cache) is kept by how far it reaches in 26 directions: those
of a cube's faces, edges and corners, each quantity over its largest. What lies within that is the hull and a little
more at its rounded corners.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

SLACK = 0.05  # of the largest of a quantity: so little beyond counts as within

_DIRECTIONS = np.array([way for way in product((-1.0, 0.0, 1.0), repeat=3) if any(way)])  # [26, 3]


@dataclass(frozen=True)
class Hull:
    """largest: decodes, prompt tokens and tokens of the cache in a step. reach: in each direction."""

    largest: tuple[float, float, float]
    reach: Sequence[float]

    def holds(self, decodes: Any, prefill: Any, kv: Any) -> "np.ndarray[Any, Any]":
        """For each step, of three arrays of one length, whether it lies within."""
        return (_scaled(self.largest, decodes, prefill, kv) @ _DIRECTIONS.T <= np.array(self.reach) + SLACK).all(axis=1)


def around(decodes: Any, prefill: Any, kv: Any) -> Hull:
    """The hull of these steps, of which there is one at least."""
    largest = (float(np.max(decodes)), float(np.max(prefill)), float(np.max(kv)))
    reach = (_scaled(largest, decodes, prefill, kv) @ _DIRECTIONS.T).max(axis=0)
    return Hull(largest, tuple(map(float, reach)))


def _scaled(largest: Sequence[float], *columns: Any) -> "np.ndarray[Any, Any]":
    """[steps, 3]. What was never measured has 1 for its largest, so that any of it lies outside."""
    return np.column_stack([np.atleast_1d(np.asarray(each, float)) for each in columns]) / np.maximum(largest, 1.0)
