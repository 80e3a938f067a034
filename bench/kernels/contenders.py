"""The contenders: every way to multiply by one matrix, in as many copies as it takes to find none of them in a cache.

The weights are random and drawn from the seed: what a multiplication costs does not depend on the values. A 2:4 weight
keeps a random pair of every group of four; a dense one keeps all. Every product is checked against float64 before any
time is taken, so that no wrong result is ever fast.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from twofour.bench.kernels.plan import Matrix
from twofour.prune.errors import TwofourError
from twofour.prune.packed import VALID_NIBBLES, Packed, join_nibbles
from twofour.serve.kernels import cpu, select
from twofour.serve.kernels.cpu import CpuWeight
from twofour.serve.kernels.select import Kernel

Product = Callable[[Tensor], Tensor]  # [tokens, columns] -> [tokens, rows]

MOST_RING_BYTES = 1 << 28  # of the copies of one contender
CHECKED_ROWS = 32
# A bfloat16 result is rounded once or twice. Sums may be float32 in any order, and x of int8 kernels has 16 bits. For
# many tokens our int8 weights are expanded to bfloat16, each rounded.
ROUNDING, SUMMING, INT8_SUMMING = 2.0**-7, 2.0**-14, 2.0**-9
_INT8 = 127


@dataclass(frozen=True)
class Contender:
    """`weight_bytes` of one copy, as laid out; `products`, one for each copy."""

    name: str
    kernel: str  # what multiplies
    weight_bytes: int
    products: tuple[Product, ...]
    checked_rows: tuple[int, ...]
    weight: Tensor  # float64 [checked rows, columns]: the dense weight that the products are checked against
    note: str | None = None
    summing: float = SUMMING  # what a product may be off, against the sum of the magnitudes that it adds


def ring_bytes(cache_bytes: int | None) -> int:
    """How many bytes of copies to go through: more than twice the last-level cache, up to a limit."""
    return MOST_RING_BYTES if cache_bytes is None else min(2 * cache_bytes + 1, MOST_RING_BYTES)


def copies_of(weight_bytes: int, ring: int) -> int:
    return max(1, -(-ring // weight_bytes))


T = TypeVar("T")


def contender(
    name: str, kernel: str, first: T, weight_bytes: int, dense: Tensor, product: Callable[[T], Product],
    ring: int, note: str | None = None,
) -> Contender:  # fmt: skip
    """`dense`: the weight [rows, columns] that `first` stands for; `product`: how to multiply by one copy."""
    copies = [first, *(deepcopy(first) for _ in range(copies_of(weight_bytes, ring) - 1))]
    rows = torch.linspace(0, len(dense) - 1, min(CHECKED_ROWS, len(dense))).long()
    products = tuple(product(copy) for copy in copies)
    checked = dense[rows.to(dense.device)].double()
    return Contender(name, kernel, weight_bytes, products, tuple(rows.tolist()), checked, note)


def sparse_contenders(matrix: Matrix, ring: int, seed: int) -> list[Contender]:
    """On the CPU, by a 2:4 weight: what `twofour serve` runs, and our kernels by name."""
    packed, integers = random_packed(matrix, seed), random_integers(matrix, seed)
    return [
        served(packed, ring),
        _cpu_contender("2:4 bf16", CpuWeight.from_packed(packed), packed.unpack(), ring),
        replace(
            _cpu_contender("2:4 int8", CpuWeight.from_packed(integers), integers.unpack(), ring), summing=INT8_SUMMING
        ),
    ]


def dense_contenders(matrix: Matrix, ring: int, seed: int) -> list[Contender]:
    """On the CPU, by a dense weight: torch, and our own kernel, which is the best dense."""
    weight = random_dense(matrix, seed)
    return [
        torch_dense(weight, ring),
        _torch_int8(matrix, ring, seed),
        _cpu_contender("dense twin", CpuWeight.from_dense(weight.clone()), weight, ring),
    ]


def served(packed: Packed, ring: int, kernels: str = "auto", name: str = "served") -> Contender:
    choice = select.choose(packed, kernels)
    kernel, dense = choice.kernel, packed.unpack()
    return contender(name, kernel.name, kernel, kernel.nbytes, dense, _kernel_product, ring, choice.note)


def torch_dense(weight: Tensor, ring: int) -> Contender:
    def product(copy: Tensor) -> Product:
        return partial(functional.linear, weight=copy)

    return contender("torch bf16", "F.linear", weight, weight.nbytes, weight, product, ring)


def _torch_int8(matrix: Matrix, ring: int, seed: int) -> Contender:
    rows, columns = matrix
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(-_INT8, _INT8 + 1, (rows, columns), dtype=torch.int8, generator=draw)
    scales = ((1 + torch.rand(rows, generator=draw)) / _INT8).bfloat16()

    def product(copy: tuple[Tensor, Tensor]) -> Product:
        return lambda x: torch._weight_int8pack_mm(x, *copy)

    first, dense = (values, scales), values * scales[:, None].float()
    nbytes = values.nbytes + scales.nbytes
    return contender("torch int8", "_weight_int8pack_mm", first, nbytes, dense, product, ring)


def _cpu_contender(name: str, weight: CpuWeight, dense: Tensor, ring: int) -> Contender:
    def product(copy: CpuWeight) -> Product:
        return partial(cpu.linear, weight=copy)

    return contender(name, cpu.available(), weight, weight.nbytes, dense, product, ring)


def _kernel_product(kernel: Kernel) -> Product:
    return lambda x: kernel(x, None)


def random_dense(matrix: Matrix, seed: int, device: str = "cpu") -> Tensor:  # bfloat16 [rows, columns]
    draw = torch.Generator(device).manual_seed(seed)
    return torch.randn(*matrix, dtype=torch.bfloat16, device=device, generator=draw)


def random_packed(matrix: Matrix, seed: int, device: str = "cpu") -> Packed:
    rows, columns = matrix
    return Packed(random_dense((rows, columns // 2), seed, device), _random_positions(matrix, seed).to(device))


def random_integers(matrix: Matrix, seed: int) -> Packed:
    """int8 values with a scale for each row."""
    rows, columns = matrix
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(-_INT8, _INT8 + 1, (rows, columns // 2), dtype=torch.int8, generator=draw)
    scales = (1 + torch.rand(rows, 1, generator=draw)) / _INT8
    return Packed(values, _random_positions(matrix, seed), scales)


def _random_positions(matrix: Matrix, seed: int) -> Tensor:  # uint8 [rows, ceil(columns / 8)]
    rows, columns = matrix
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randint(len(VALID_NIBBLES), (rows, columns // 4), generator=draw)
    return join_nibbles(torch.tensor(VALID_NIBBLES, dtype=torch.uint8)[kinds])


def activations(tokens: int, columns: int, seed: int, device: str = "cpu") -> Tensor:  # bfloat16
    return random_dense((tokens, columns), seed + tokens, device)


def require_right(found: Sequence[Contender], x: Tensor) -> None:  # x: [tokens, columns]
    """Raise TwofourError, naming the contender, where a product is not what float64 says."""
    for each in found:
        with torch.inference_mode():
            y = each.products[0](x)[:, list(each.checked_rows)].double()  # [tokens, checked rows]
        exact = x.double() @ each.weight.t()
        allowed = ROUNDING * exact.abs() + each.summing * (x.double().abs() @ each.weight.abs().t())
        wrong = ~((y - exact).abs() <= allowed)
        if bool(wrong.any()):
            token, row = (int(i) for i in wrong.nonzero()[0])
            raise TwofourError(
                f"{each.name} ({each.kernel}) multiplies wrongly: {float(y[token, row]):g} in token {token}, row "
                f"{each.checked_rows[row]} of {len(x)} tokens x {x.shape[1]} columns, {float(exact[token, row]):g} is "
                "right; nothing was timed: do not use this kernel on this machine"
            )
