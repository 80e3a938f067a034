"""Products alone, dense and 2:4, in turns, by copies of the weight that no cache holds: few tokens first."""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from twofour.bench.gpu.day import Day, matrices
from twofour.bench.gpu.sheet import Key, Sheet, failure
from twofour.bench.kernels import contenders, cuda
from twofour.bench.kernels.contenders import Contender, Form, activations, random_dense, random_packed, torch_dense
from twofour.bench.kernels.grid import Matrix
from twofour.bench.kernels.race import Turn, cpu_turn, race
from twofour.prune.format.packed import Packed
from twofour.serve.kernels.cusparselt.kernel import CusparseltKernel
from twofour.serve.kernels.race import ALWAYS, DECODE_TOKENS
from twofour.serve.kernels.select import Kernel
from twofour.serve.kernels.triton import decode as triton_decode
from twofour.serve.kernels.triton import plan as triton_plan
from twofour.serve.kernels.triton.kernel import TritonKernel

DENSE, DECODE, EXPAND, EXPANDED = "dense", "triton", "expand alone", "expand, then dense"
PLAIN, SEARCHED, SERVED = "cusparselt, default", "cusparselt, searched", "served"
SEED = 0


def run(day: Day, sheet: Sheet) -> None:
    decode = [tokens for tokens in day.tokens if tokens <= DECODE_TOKENS]
    for group in (decode, [tokens for tokens in day.tokens if tokens not in decode]):
        for shape_name, shape in day.shapes.items():
            for name, matrix in matrices(shape).items():
                _products(day, sheet, {"model": shape_name, "matrix": name}, matrix, group)


def _products(day: Day, sheet: Sheet, key: Mapping[str, str], matrix: Matrix, group: list[int]) -> None:
    rows, columns = matrix
    made = Rings(day, matrix)
    for tokens in group:
        cell: Key = {**key, "rows": rows, "columns": columns, "tokens": tokens}
        sheet.cell(cell, partial(_raced, day, made, activations(tokens, columns, SEED, day.device)))


class Rings:
    """The contenders of one matrix, made when the first cell wants them; whoever cannot be made is `failed`."""

    def __init__(self, day: Day, matrix: Matrix) -> None:
        self._day, self._matrix = day, matrix
        self._found: dict[str, Contender] = {}
        self.failed: dict[str, dict[str, Any]] = {}

    def found(self) -> dict[str, Contender]:
        if not (self._found or self.failed):
            self._make()
        return self._found

    def _make(self) -> None:
        packed = random_packed(self._matrix, SEED, self._day.device)
        ways: dict[str, Callable[[], Form]] = {
            DENSE: lambda: torch_dense(random_dense(self._matrix, SEED, self._day.device)),
            DECODE: lambda: _form(DECODE, TritonKernel.from_packed(packed, ALWAYS), packed),
            EXPAND: lambda: _expansion(packed),
            EXPANDED: lambda: _form(EXPANDED, TritonKernel.from_packed(packed, 0), packed),
            PLAIN: lambda: _form(PLAIN, CusparseltKernel.from_packed(packed), packed),
            SEARCHED: lambda: _form(SEARCHED, CusparseltKernel.from_packed(packed).tuned(self._day.tokens), packed),
            SERVED: lambda: contenders.served(packed),
        }
        for name, make in ways.items():
            try:
                (self._found[name],) = contenders.with_copies([make()], self._ring_bytes())
            except torch.AcceleratorError:
                raise
            except Exception as error:  # this one cannot be had here; the others can
                self.failed[name] = failure(error)

    def _ring_bytes(self) -> int:
        return self._day.ring_bytes or contenders.ring_bytes(cuda.cache_bytes())


def _form(name: str, kernel: Kernel, packed: Packed) -> Form:
    return contenders.by_kernel(name, kernel, packed.unpack())


def _expansion(packed: Packed) -> Form:
    """The weight made dense in a buffer, and nothing multiplied."""
    kernel = TritonKernel.from_packed(packed, 0)
    dense = packed.values.new_empty(packed.shape)

    def product(kernel: TritonKernel) -> contenders.Product:
        def expand(x: Tensor) -> Tensor:
            triton_decode.expand(kernel.weight.values, kernel.weight.codes, dense)
            return dense

        return expand

    return contenders.by_kernel(EXPAND, kernel, packed.unpack(), product)


def _raced(day: Day, rings: Rings, x: Tensor) -> dict[str, Any]:
    """Medians of the contenders that multiply rightly; of the others, why they do not take part."""
    found = {name: each for name, each in rings.found().items() if takes(name, len(x))}
    turns: dict[str, Turn] = {}
    failed = dict(rings.failed)
    for name, contender in found.items():
        try:
            if name != EXPAND:
                contenders.require_right([contender], x)
            turns[name] = cuda.turn(contender, x) if day.on_gpu else cpu_turn(contender, x, torch.get_num_threads())
        except torch.AcceleratorError:
            raise
        except Exception as error:
            failed[name] = failure(error)
    laps = race(turns, day.rounds, day.target_s)
    return {"contenders": {name: _figures(found[name], lap.seconds) for name, lap in laps.items()} | failed}


def takes(name: str, tokens: int) -> bool:
    """With many tokens the kernel for few takes the other path, which is a contender of its own."""
    return name != DECODE or tokens <= triton_plan.MAX_TOKENS


def _figures(contender: Contender, seconds: tuple[float, ...]) -> dict[str, Any]:
    middle = median(seconds)
    return {
        "kernel": contender.kernel,
        "median_s": middle,
        "least_s": min(seconds),
        "most_s": max(seconds),
        "weight_bytes": contender.weight_bytes,
        "bytes_per_s": contender.weight_bytes / middle,
        "note": contender.note,
    }
