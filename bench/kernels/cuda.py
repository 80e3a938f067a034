"""The contenders, their turns and the ceiling on a GPU. Written for it, not yet run on one: performance not measured.

A turn replays a CUDA graph that holds one multiplication by every copy of the weight, more than twice the L2 cache
together; so neither Python nor the launches are measured, and no weight is found in the cache. Times are those of
CUDA events.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from twofour.bench.kernels.ceiling import PASSES, Ceiling
from twofour.bench.kernels.contenders import Contender, Form, Makers, random_dense, random_packed, served, torch_dense
from twofour.bench.kernels.grid import Grid, Matrix
from twofour.bench.kernels.race import Turn
from twofour.prune.errors import InputError

KERNELS = ("triton", "cusparselt")  # 2:4, by the names of `--kernels`
NOT_MEASURED = {
    "2:4 int8": "no kernel for it on a GPU",
    "torch int8": "not measured on a GPU",
    "dense twin": "on a GPU torch's linear is the best dense",
}
COPY_BYTES = 1 << 30
WARM_UPS = 3


def missing() -> str:
    """Why nothing can be measured here; empty where it can."""
    return "" if torch.cuda.is_available() else "this machine has no CUDA device that torch can use"


def target() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def cache_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def copy_ceiling() -> Ceiling:
    """Copy a gibibyte on the device: it is read and written once each."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    to.copy_(source)
    return Ceiling("copy", 2 * COPY_BYTES, tuple(_seconds(lambda: to.copy_(source)) for _ in range(PASSES)))


def makers(part: str, matrix: Matrix, seed: int) -> Makers:
    dense = {"torch bf16": lambda: torch_dense(random_dense(matrix, seed, "cuda"))}
    if part == "lm_head":
        return dense
    packed = random_packed(matrix, seed, "cuda")
    able = [kernel for kernel in KERNELS if not _refusal(matrix, kernel)]
    named = {f"2:4 {kernel}": partial(served, packed, kernel, f"2:4 {kernel}") for kernel in able}
    return {"served": partial(served, packed), **named, **dense}


def forms(part: str, matrix: Matrix, seed: int) -> list[Form]:
    return [make() for make in makers(part, matrix, seed).values()]


def refusals(grid: Grid) -> dict[str, str]:
    """The kernels that take none or not all of the matrices, and why."""
    reasons = {kernel: {_refusal(matrix, kernel) for matrix in grid.linears} - {""} for kernel in KERNELS}
    return {f"2:4 {kernel}": "; ".join(sorted(found)) for kernel, found in reasons.items() if found}


@cache
def _refusal(matrix: Matrix, kernel: str) -> str:
    try:
        served(random_packed(matrix, 0, "cuda"), kernel)
    except InputError as error:
        return str(error)
    except Exception:  # no refusal: it fails again where it should multiply, and is dropped by name
        return ""
    return ""


def turn(contender: Contender, x: Tensor) -> Turn:
    graph = _captured(contender, x)
    copies = len(contender.products)

    def replayed(calls: int) -> float:
        replays = -(-calls // copies)
        return _seconds(graph.replay, replays) / copies

    return replayed


def _seconds(work: Callable[[], object], times: int = 1) -> float:
    """The seconds of one `work`, by the device's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / times


def _captured(contender: Contender, x: Tensor) -> torch.cuda.CUDAGraph:
    """One multiplication by every copy. Compiling and tuning are done before, on the side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(side):
        for product in contender.products[:WARM_UPS]:
            product(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Where a capture fails, torch leaves its stream the current one; the outer context does not.
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        for product in contender.products:
            product(x)
    return graph
