"""What a linear would take on a GPU that is not here: an estimate, by the roofline of its data sheet.

A product takes as long as its weight takes to be read, or its multiplications, whichever is longer. Activations are
left out, and they are 16 bits wide in every scheme: int8 weights are read faster and multiplied as 16-bit ones. Sparse
tensor cores have twice the dense rate on paper; libraries reach 1.5 to 1.7 times it on large products, so 2:4 counts as
0.6 of the dense time.
"""

from typing import NamedTuple

import torch

from twofour.prune.errors import InputError
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme, scheme_bytes

SPARSE_SHARE = 0.6


class Card(NamedTuple):
    """bytes_per_s: of its memory. flop_per_s: dense, in bfloat16 or float16, summed in float32. memory_gib: as its
    driver says, with error correction on where it has such.
    """

    bytes_per_s: float
    flop_per_s: float
    memory_gib: float


CARDS = {  # NVIDIA's data sheets; where they give the sparse rate alone, half of it
    "A10": Card(600e9, 125e12, 22.5),
    "A100": Card(2039e9, 312e12, 80),  # 80 GB, SXM
    "B200": Card(8000e9, 2250e12, 179),
    "H100": Card(3350e9, 989e12, 80),  # SXM
    "H200": Card(4800e9, 989e12, 140),
    "L4": Card(300e9, 121e12, 22.5),
    "L40S": Card(864e9, 362e12, 45),
    "RTX4090": Card(1008e9, 165e12, 24),
}


def known(name: str) -> Card:
    if name not in CARDS:
        raise InputError(f"no card is named {name!r}; give one of {', '.join(CARDS)}")
    return CARDS[name]


def seconds(card: Card, rows: int, columns: int, scheme: Scheme, tokens: int, dtype: torch.dtype) -> float:
    """Estimate the seconds of a product of so many tokens with a weight [rows, columns]."""
    read_s = scheme_bytes(scheme, rows, columns, dtype) / card.bytes_per_s
    dense_s = 2 * rows * columns * tokens / card.flop_per_s
    return max(read_s, dense_s * (SPARSE_SHARE if scheme in TWO_OF_FOUR else 1.0))
