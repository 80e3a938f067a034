"""Which steps were measured: a plan that needs more in one extrapolates, and says so."""

from dataclasses import dataclass
from typing import Any

import numpy as np

SLACK = 0.05  # of the largest of a quantity: so little beyond counts as within


@dataclass(frozen=True)
class Hull:
    """A box. largest: the most decodes, prompt tokens and tokens of the cache attended to in a step, each by itself."""

    largest: tuple[float, float, float]


def around(decodes: Any, prefill: Any, kv: Any) -> Hull:
    """Of these steps, of which there is one at least."""
    return Hull((float(np.max(decodes)), float(np.max(prefill)), float(np.max(kv))))
