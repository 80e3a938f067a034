"""Compile what the Triton kernels will launch, many at a time: later stages find it in Triton's cache."""

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from itertools import product
from time import monotonic, perf_counter
from typing import Any

from twofour.bench.gpu.day import Day, matrices
from twofour.bench.gpu.sheet import Sheet
from twofour.bench.gpu.sweep import SEED, SWEPT, compile_one, cuts
from twofour.bench.kernels.contenders import random_packed
from twofour.bench.kernels.grid import Matrix
from twofour.prune.machine.processors import usable_cpus
from twofour.serve.kernels.triton.kernel import TritonKernel

MOST_PROCESSES = 16


def run(day: Day, sheet: Sheet) -> None:
    linears = dict.fromkeys(matrix for shape in day.shapes.values() for matrix in matrices(shape).values())
    workers = min(MOST_PROCESSES, len(usable_cpus()))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        wanted = {
            pool.submit(compile_linear, matrix, day.device): {"of": "linear", "rows": matrix[0], "columns": matrix[1]}
            for matrix in linears
        }
        for name, tokens in product(SWEPT, day.sweep_tokens if day.on_gpu else ()):
            for number in range(len(cuts(day, random_packed(matrices(day.served)[name], SEED, day.device), tokens))):
                key = {"of": "sweep", "matrix": name, "tokens": tokens, "number": number}
                wanted[pool.submit(compile_one, day, name, tokens, number)] = key
        _collect(wanted, sheet)
        pool.shutdown(wait=False, cancel_futures=True)


def compile_linear(matrix: Matrix, device: str) -> float:
    """Seconds to compile all that a linear of this shape may launch."""
    began = perf_counter()
    TritonKernel.from_packed(random_packed(matrix, 0, device)).prepare(None)
    return perf_counter() - began


def _collect(wanted: dict["Future[float]", dict[str, Any]], sheet: Sheet) -> None:
    with suppress(TimeoutError):
        for done in as_completed(wanted, max(0.0, sheet.until - monotonic())):
            sheet.cell(wanted.pop(done), partial(_seconds, done))
    for key in wanted.values():
        sheet.leave(key)


def _seconds(done: "Future[float]") -> dict[str, float]:
    return {"seconds": done.result()}
