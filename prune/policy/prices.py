"""What a linear costs in a scheme, as a whole number: its bytes, or the picoseconds of one product.

`decode` is one token, for which every weight is read once. `prefill` is many, for which arithmetic counts. Seconds are
measured on this machine by a clock that is handed in, for the kernels are rooms above, or estimated for a card.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import get_args

import torch

from twofour.prune.config import BudgetFor
from twofour.prune.errors import InputError
from twofour.prune.format.schemes import Scheme, scheme_bytes
from twofour.prune.policy import cards

Shape = tuple[int, int]  # rows, columns: [out, in]
Price = Callable[[Shape, Scheme], int]
Prices = Mapping[str, Mapping[Scheme, int]]  # by a shape as "4096 x 14336", then by scheme
Clock = Callable[[Shape, Scheme, int, torch.dtype], float]  # ..., tokens of a product, dtype of the model -> seconds

TOKENS: Mapping[BudgetFor, int] = {"decode": 1, "prefill": 512}
PICOSECONDS = 1e12  # in a second


def price(kind: BudgetFor, dtype: torch.dtype, card: str | None = None, clock: Clock | None = None) -> Price:
    """Return the price of a linear. dtype: of the model. Raises InputError where seconds can be had from nowhere."""
    if kind == "bytes":
        return lambda shape, scheme: scheme_bytes(scheme, *shape, dtype)
    if card:
        chosen = cards.known(card)
        return lambda shape, scheme: _picoseconds(cards.seconds(chosen, *shape, scheme, TOKENS[kind], dtype))
    if clock is None:
        raise InputError(f"nothing here can time products for a budget of {kind}; name a card, or give one of bytes")
    return lambda shape, scheme: _picoseconds(clock(shape, scheme, TOKENS[kind], dtype))


def priced(shapes: Iterable[Shape], price: Price) -> Prices:
    """Price every shape in every scheme, once: linears of one shape have one price. Plain data for JSON."""
    return {named(shape): {scheme: price(shape, scheme) for scheme in get_args(Scheme)} for shape in set(shapes)}


def named(shape: Shape) -> str:
    """Name a shape as prices do."""
    return f"{shape[0]} x {shape[1]}"


def _picoseconds(seconds: float) -> int:
    return round(seconds * PICOSECONDS)
