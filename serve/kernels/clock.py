"""What a product with a weight takes on this machine in each scheme, by the kernels that would serve it.

`prune --budget-for decode` and `prefill` reckon with these seconds. The schemes of one shape race each other, on random
weights: the time of a kernel does not depend on the values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.prune.format.packed import pack
from twofour.prune.format.rounding import to_int8
from twofour.prune.format.schemes import Scheme
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels import race, select
from twofour.serve.kernels.dense import DenseKernel
from twofour.serve.kernels.dense_int8 import DenseInt8Kernel, takes

Multiply = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class AsServed:
    """A weight as a linear of the server holds it: it takes the path that it takes there, whatever the race says."""

    multiply: Multiply
    nbytes: int
    crossover_tokens: int = race.ALWAYS

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.multiply(x, bias)


@cache
def clock(device: str) -> Callable[[tuple[int, int], Scheme, int, torch.dtype], float]:
    """Return what tells the seconds of one product: by shape [out, in], scheme, tokens and dtype of the activations."""

    @cache
    def raced(shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> dict[str, float]:
        x = torch.randn(tokens, shape[1], device=device).to(dtype)
        return race.seconds_of(_forms(torch.randn(shape, device=device).to(dtype)), x)

    return lambda shape, scheme, tokens, dtype: raced(shape, tokens, dtype)[scheme]


def _forms(weight: Tensor) -> dict[str, race.Way]:
    packed, rounded = pack(magnitude(weight)), to_dense_int8(weight, "weight")
    kernels: dict[Scheme, select.Kernel | DenseInt8Kernel] = {
        "2:4": select.choose(packed, dtype=weight.dtype).kernel,
        "2:4-int8": select.choose(to_int8(packed), dtype=weight.dtype).kernel,
        "dense": _dense(weight),
        "dense-int8": DenseInt8Kernel.from_int8(rounded)
        if takes(rounded, "auto")
        else _dense(rounded.unpack().to(weight.dtype)),
    }
    return {scheme: AsServed(kernel, kernel.nbytes) for scheme, kernel in kernels.items()}


def _dense(weight: Tensor) -> DenseKernel:
    return DenseKernel(weight, None, select.dense_crossover(weight, "auto", is_head=False))
