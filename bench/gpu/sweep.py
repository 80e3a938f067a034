"""Other ways to cut the work of the Triton kernel for few tokens: other tiles, warps, stages and splits.

What was chosen (serve/kernels/triton/plan.py) follows from machine code, never from a clock. Here is the clock.
"""

from dataclasses import asdict
from functools import partial
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any

from torch import Tensor

from twofour.bench.gpu.day import Day, matrices
from twofour.bench.gpu.sheet import Key, Sheet
from twofour.bench.kernels import contenders, cuda
from twofour.bench.kernels.contenders import Product, activations, random_packed
from twofour.bench.kernels.race import cpu_turn, race
from twofour.prune.format.packed import Packed
from twofour.serve.kernels.race import ALWAYS
from twofour.serve.kernels.triton import decode as triton_decode
from twofour.serve.kernels.triton import plan as triton_plan
from twofour.serve.kernels.triton.kernel import TritonKernel
from twofour.serve.kernels.triton.layout import traits
from twofour.serve.kernels.triton.plan import Tile

SWEPT = ("gate, up", "down")
ROWS, GROUPS, WARPS, STAGES, SPLITS = (64, 128), (16, 32), (4, 8), (2, 3, 4), (1, 2, 4)
SEED = 1


def run(day: Day, sheet: Sheet) -> None:
    for name in SWEPT:
        matrix = matrices(day.served)[name]
        packed = random_packed(matrix, SEED, day.device)
        for tokens in day.sweep_tokens:
            x = activations(tokens, matrix[1], SEED, day.device)
            for tile, splits in cuts(day, packed, tokens):
                key: Key = {"matrix": name, "tokens": tokens, "splits": splits, **cut(tile)}
                sheet.cell(key, partial(_timed, day, packed, x, tile, splits))


def cuts(day: Day, packed: Packed, tokens: int) -> list[tuple[Tile, int]]:
    """The plan's own cut, the same with other splits, and, on a GPU, all other tiles."""
    splits = TritonKernel.from_packed(packed).weight.splits
    planned = triton_plan.tile(tokens, traits(packed.values.device)[1])
    other_tiles = [Tile(rows, planned.tokens, *rest) for rows, *rest in product(ROWS, GROUPS, WARPS, STAGES)]
    found = [(planned, splits), *((planned, other) for other in SPLITS)]
    return list(dict.fromkeys([*found, *((tile, splits) for tile in other_tiles if day.on_gpu)]))


def cut(tile: Tile) -> dict[str, int]:
    """A tile as part of a key."""
    return {f"tile_{name}": value for name, value in asdict(tile).items()}


def compile_one(day: Day, name: str, tokens: int, number: int) -> float:
    """Compile, in a process of its own, what the `number`-th cut of a matrix launches; its seconds."""
    matrix = matrices(day.served)[name]
    packed = random_packed(matrix, SEED, day.device)
    tile, splits = cuts(day, packed, tokens)[number]
    began = perf_counter()
    _multiply(TritonKernel.from_packed(packed), tile, splits)(activations(tokens, matrix[1], SEED, day.device))
    return perf_counter() - began


def _multiply(kernel: TritonKernel, tile: Tile, splits: int) -> Product:
    weight = kernel.weight
    return lambda x: triton_decode.decode(x, weight.values, weight.codes, weight.arrivals, None, splits, tile)


def _timed(day: Day, packed: Packed, x: Tensor, tile: Tile, splits: int) -> dict[str, Any]:
    kernel = TritonKernel.from_packed(packed, ALWAYS)
    form = contenders.by_kernel("triton", kernel, packed.unpack(), partial(_multiply, tile=tile, splits=splits))
    ring = day.ring_bytes or contenders.ring_bytes(cuda.cache_bytes())
    (contender,) = contenders.with_copies([form], ring)
    contenders.require_right([contender], x)
    turn = cuda.turn(contender, x) if day.on_gpu else cpu_turn(contender, x, 1)
    seconds = race({"triton": turn}, day.rounds, day.target_s)["triton"].seconds
    return {"median_s": median(seconds), "least_s": min(seconds), "most_s": max(seconds)}
