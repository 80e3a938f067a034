"""What a linear costs in a scheme, as a whole number: its bytes, or the picoseconds of one product.

`decode` is one token, for which every weight is read once. `prefill` is many, for which arithmetic counts. Seconds are
measured on this machine by a clock that is handed in, for the kernels are rooms above, or estimated for a card.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch

from twofour.prune.errors import InputError
from twofour.prune.format.schemes import Scheme, scheme_bytes
from twofour.prune.policy import cards

Kind = Literal["bytes", "decode", "prefill"]
Shape = tuple[int, int]  # rows, columns: [out, in]
Price = Callable[[Shape, Scheme], int]
Clock = Callable[[Shape, Scheme, int, torch.dtype], float]  # ..., tokens of a product, dtype of the model -> seconds

TOKENS: Mapping[Kind, int] = {"decode": 1, "prefill": 512}
PICOSECONDS = 1e12  # in a second


def price(kind: Kind, dtype: torch.dtype, card: str | None = None, clock: Clock | None = None) -> Price:
    """Return the price of a linear. dtype: of the model. Raises InputError where seconds can be had from nowhere."""
    if kind == "bytes":
        return lambda shape, scheme: scheme_bytes(scheme, *shape, dtype)
    if card:
        known = cards.CARDS[card]
        return lambda shape, scheme: _picoseconds(cards.seconds(known, *shape, scheme, TOKENS[kind], dtype))
    if clock is None:
        raise InputError(f"nothing here can time products for a budget of {kind}; name a card, or give one of bytes")
    return _timed(clock, TOKENS[kind], dtype)


def _timed(clock: Clock, tokens: int, dtype: torch.dtype) -> Price:
    """Time each shape once: two linears of one shape have one price."""
    known = dict[tuple[Shape, Scheme], int]()

    def timed(shape: Shape, scheme: Scheme) -> int:
        if (shape, scheme) not in known:
            known[shape, scheme] = _picoseconds(clock(shape, scheme, tokens, dtype))
        return known[shape, scheme]

    return timed


def _picoseconds(seconds: float) -> int:
    return round(seconds * PICOSECONDS)
