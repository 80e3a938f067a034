"""The contenders: every way to multiply by one matrix, in as many copies as it takes to find none of them in a cache.

The weights are random and drawn from the seed: what a multiplication costs does not depend on the values. A 2:4 weight
keeps a random pair of every group of four; a dense one keeps all. Every product is checked against float64 before its
time is taken, so that no wrong result is ever fast.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from twofour.bench.kernels.grid import Matrix
from twofour.prune.errors import TwofourError
from twofour.prune.format.packed import VALID_NIBBLES, Packed, join_nibbles
from twofour.serve.kernels import cpu, select
from twofour.serve.kernels.cpu import CpuWeight
from twofour.serve.kernels.cusparselt import kernel as cusparselt
from twofour.serve.kernels.cusparselt.kernel import CusparseltKernel
from twofour.serve.kernels.select import Kernel

Product = Callable[[Tensor], Tensor]  # [tokens, columns] -> [tokens, rows]
K = TypeVar("K", bound=Kernel)

MOST_RING_BYTES = 1 << 28  # of the copies of one contender
CHECKED_ROWS = 32
# A bfloat16 result is rounded once or twice. Sums may be float32 in any order, and x of int8 kernels has 16 bits. For
# many tokens our int8 weights are expanded to bfloat16, each rounded. cuSPARSELt may round the sum of each split to
# bfloat16 before it adds them up.
ROUNDING, SUMMING, INT8_SUMMING, SPLIT_SUMMING = 2.0**-7, 2.0**-14, 2.0**-9, 2.0**-11
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
    summing: float = SUMMING  # how wrong a product may be, as a share of the sum of the magnitudes that it adds


@dataclass(frozen=True)
class Form:
    """A contender whose copies are yet to be made."""

    contender: Contender
    copies: Iterator[Product]


Makers = Mapping[str, Callable[[], Form]]  # by name: each may fail by itself


def sparse_makers(matrix: Matrix, seed: int) -> Makers:
    """On the CPU, by a 2:4 weight: what `twofour serve` runs, and our kernels by name."""
    packed, integers = random_packed(matrix, seed), random_integers(matrix, seed)
    return {
        "served": lambda: served(packed),
        "2:4 bf16": lambda: _cpu_form("2:4 bf16", CpuWeight.from_packed(packed), packed.unpack()),
        "2:4 int8": lambda: _cpu_form("2:4 int8", CpuWeight.from_packed(integers), integers.unpack(), INT8_SUMMING),
    }


def dense_makers(matrix: Matrix, seed: int) -> Makers:
    """On the CPU, by a dense weight: torch, and our own kernel, which is the best dense."""
    weight = random_dense(matrix, seed)
    return {
        "torch bf16": lambda: torch_dense(weight),
        "torch int8": lambda: _torch_int8(matrix, seed),
        "dense twin": lambda: _cpu_form("dense twin", CpuWeight.from_dense(weight.clone()), weight),
    }


def sparse_forms(matrix: Matrix, seed: int) -> list[Form]:
    return [make() for make in sparse_makers(matrix, seed).values()]


def dense_forms(matrix: Matrix, seed: int) -> list[Form]:
    return [make() for make in dense_makers(matrix, seed).values()]


def with_copies(forms: Sequence[Form], ring: int) -> list[Contender]:
    """Copies of all forms in turns: memory differs from page to page, and all should get the same mixture of it.

    Of two rings of one kernel that were made one after the other, one was a tenth faster in every round.
    """
    counts = [copies_of(form.contender.weight_bytes, ring) for form in forms]
    turns = sorted((number / count, which) for which, count in enumerate(counts) for number in range(count))
    products: list[list[Product]] = [[] for _ in forms]
    for _, which in turns:
        products[which].append(next(forms[which].copies))
    return [replace(form.contender, products=tuple(own)) for form, own in zip(forms, products, strict=True)]


def ring_bytes(cache_bytes: int | None) -> int:
    """How many bytes of copies to go through: more than twice the last-level cache, up to a limit."""
    return MOST_RING_BYTES if cache_bytes is None else min(2 * cache_bytes + 1, MOST_RING_BYTES)


def copies_of(weight_bytes: int, ring: int) -> int:
    return max(1, -(-ring // weight_bytes))


def served(packed: Packed, kernels: str = "auto", name: str = "served") -> Form:
    choice = select.choose(packed, kernels)
    kernel = choice.kernel
    is_split = kernel.name == CusparseltKernel.name
    notes = [choice.note, *choice.dropped, cusparselt.warning() if is_split else None]
    form = by_kernel(name, kernel, packed.unpack())
    contender = replace(
        form.contender,
        note="; ".join(note for note in notes if note) or None,
        summing=SPLIT_SUMMING if is_split else SUMMING,
    )
    return replace(form, contender=contender)


def torch_dense(weight: Tensor) -> Form:
    contender = _contender("torch bf16", "F.linear", weight.nbytes, weight)
    return Form(contender, _copies(weight, lambda copy: partial(functional.linear, weight=copy)))


def _torch_int8(matrix: Matrix, seed: int) -> Form:
    rows, columns = matrix
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(-_INT8, _INT8 + 1, (rows, columns), dtype=torch.int8, generator=draw)
    scales = ((1 + torch.rand(rows, generator=draw)) / _INT8).bfloat16()
    nbytes, dense = values.nbytes + scales.nbytes, values * scales[:, None].float()

    def product(copy: tuple[Tensor, Tensor]) -> Product:
        return lambda x: torch._weight_int8pack_mm(x, *copy)

    return Form(_contender("torch int8", "_weight_int8pack_mm", nbytes, dense), _copies((values, scales), product))


def _cpu_form(name: str, weight: CpuWeight, dense: Tensor, summing: float = SUMMING) -> Form:
    contender = replace(_contender(name, cpu.available(), weight.nbytes, dense), summing=summing)
    return Form(contender, _copies(weight, lambda copy: partial(cpu.linear, weight=copy)))


def by_kernel(name: str, kernel: K, dense: Tensor, product: Callable[[K], Product] | None = None) -> Form:
    """A contender by a kernel's layout. `dense` [rows, columns]: the weight; `product`: if not the kernel's own."""
    return Form(_contender(name, kernel.name, kernel.nbytes, dense), _copies(kernel, product or _kernel_product))


def _kernel_product(kernel: Kernel) -> Product:
    return lambda x: kernel(x, None)


def _contender(name: str, kernel: str, weight_bytes: int, dense: Tensor) -> Contender:  # dense: [rows, columns]
    rows = torch.linspace(0, len(dense) - 1, min(CHECKED_ROWS, len(dense))).long()
    checked = dense[rows.to(dense.device)].double()
    return Contender(name, kernel, weight_bytes, (), tuple(rows.tolist()), checked)


T = TypeVar("T")


def _copies(first: T, product: Callable[[T], Product]) -> Iterator[Product]:
    yield product(first)
    while True:
        yield product(deepcopy(first))


def random_dense(matrix: Matrix, seed: int, device: str = "cpu") -> Tensor:  # bfloat16 [rows, columns]
    draw = torch.Generator(device).manual_seed(seed)
    return torch.randn(*matrix, dtype=torch.bfloat16, device=device, generator=draw)


def random_packed(matrix: Matrix, seed: int, device: str = "cpu") -> Packed:
    rows, columns = matrix
    return Packed(random_dense((rows, columns // 2), seed, device), _random_positions(matrix, seed, device))


def random_integers(matrix: Matrix, seed: int) -> Packed:
    """int8 values with a scale for each row."""
    rows, columns = matrix
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(-_INT8, _INT8 + 1, (rows, columns // 2), dtype=torch.int8, generator=draw)
    scales = (1 + torch.rand(rows, 1, generator=draw)) / _INT8
    return Packed(values, _random_positions(matrix, seed), scales)


def _random_positions(matrix: Matrix, seed: int, device: str = "cpu") -> Tensor:  # uint8 [rows, ceil(columns / 8)]
    rows, columns = matrix
    draw = torch.Generator(device).manual_seed(seed)
    kinds = torch.randint(len(VALID_NIBBLES), (rows, columns // 4), device=device, generator=draw)
    return join_nibbles(torch.tensor(VALID_NIBBLES, dtype=torch.uint8, device=device)[kinds])


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
                "right; it is not timed: do not use this kernel on this machine"
            )
