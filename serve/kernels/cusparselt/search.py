"""Which algorithm of cuSPARSELt, and which split of its sums, multiplies a shape and a number of tokens fastest.

torch's search (`torch._C._cusparselt.mm_search`, a private name: looked up, never assumed) proposes one and says how
many algorithms there are. It times each once or a few times and knows nothing of a graph; so all of them, and for few
tokens each of their splits, are timed here shortly, and the best, its proposal and the default again and longer: on
random numbers, over copies of the weight that together exceed the caches, as the layers of a model do. The default is
timed before torch searches, since a torch that caches plans may put the proposal in the place of the default. An
algorithm that gives another product than the default has lost. Without the private name the default is kept: the public
search is deprecated and forgets the split, which matters most.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from math import inf
from typing import Any

import torch
from torch import Tensor

from twofour.serve.kernels.race import COPIES, RING_BYTES

log = logging.getLogger(__name__)

TOP = 3
SHORT, LONG = 10, 50  # calls in a measurement
# Of the sums, and how their parts are added up: in the same kernel (1) or in a second one (2). The library knows -1
# parts, too, and hangs where the GPU does not.
SPLITS, SPLIT_MODES = (2, 4, 8), (1, 2)
SPLIT_TOKENS = 256  # beyond, tiles of the result occupy a GPU without any split
TOLERANCE = 0.02
_REPLAYS = 5

Call = Callable[[], Tensor]
Time = Callable[[Call, int], float]  # seconds of one of so many calls


@dataclass(frozen=True)
class Algorithm:
    """The arguments of `torch._cslt_sparse_mm` that choose how it computes."""

    alg_id: int = 0
    split_k: int = 1
    split_k_mode: int = -1


DEFAULT = Algorithm()


@dataclass(frozen=True)
class Tuning:
    """What a search found for one shape: the algorithm of each number of tokens, ascending."""

    library_version: int
    algorithms: tuple[tuple[int, Algorithm], ...]

    def algorithm(self, tokens: int) -> Algorithm:
        """Return that of the smallest bucket which holds the tokens; beyond the last, the last one's."""
        fitting = [found for bucket, found in self.algorithms if bucket >= tokens]
        return fitting[0] if fitting else self.algorithms[-1][1]

    @cached_property
    def numbers(self) -> list[int]:
        """The buckets and algorithms as an operator takes them and a file keeps them, four numbers each."""
        return [
            number
            for tokens, found in self.algorithms
            for number in (tokens, found.alg_id, found.split_k, found.split_k_mode)
        ]

    @classmethod
    def from_numbers(cls, library_version: int, numbers: list[int]) -> "Tuning":
        """The inverse of `numbers`."""
        rows = [numbers[at : at + 4] for at in range(0, len(numbers), 4)]
        return cls(library_version, tuple((tokens, Algorithm(*found)) for tokens, *found in rows))


def ring(blob: Tensor) -> list[Tensor]:
    """A blob and copies of it, more than the caches hold."""
    count = min(COPIES, -(-RING_BYTES // blob.nbytes))
    return [blob, *(blob.clone() for _ in range(count - 1))]


def search(blobs: Sequence[Tensor], columns: int, tokens: int, time_s: Time) -> Algorithm:
    """Time what the library has for this many tokens; ties go to the default, then to the proposal."""
    propose = _mm_search()
    if propose is None:
        return DEFAULT
    blob = blobs[0]
    draw = torch.Generator(blob.device).manual_seed(tokens)
    x = torch.randn(tokens, columns, dtype=blob.dtype, device=blob.device, generator=draw)
    expected = _product(blob, x, DEFAULT)

    def seconds(found: Algorithm, calls: int) -> float:
        copies = cycle(blobs)
        try:
            return time_s(lambda: _product(next(copies), x, found), calls)
        except RuntimeError:  # not every algorithm takes every shape, and the library says so only when asked to run
            return inf

    took = {DEFAULT: seconds(DEFAULT, LONG)}
    try:
        alg_id, split_k, split_k_mode, count = propose(blob, x.t(), None, None, None, True)
    except RuntimeError:
        log.warning("cuSPARSELt cannot search for %d tokens, its default is kept", tokens, exc_info=True)
        return DEFAULT
    best = sorted(algorithms(count, tokens), key=lambda found: seconds(found, SHORT))[:TOP]
    for found in (Algorithm(alg_id, split_k, split_k_mode), *best):
        if found not in took:
            took[found] = seconds(found, LONG)
    return min((found for found in took if _is_right(blob, x, found, expected)), key=lambda found: took[found])


def algorithms(count: int, tokens: int) -> list[Algorithm]:
    """All there are, each with all its splits where these can matter."""
    splits = [(split, mode) for split in SPLITS for mode in SPLIT_MODES] if tokens <= SPLIT_TOKENS else []
    return [Algorithm(number, *chosen) for number in range(count) for chosen in ((1, -1), *splits)]


def _product(blob: Tensor, x: Tensor, found: Algorithm) -> Tensor:
    return torch._cslt_sparse_mm(blob, x.t(), transpose_result=True, **vars(found))


def _is_right(blob: Tensor, x: Tensor, found: Algorithm, expected: Tensor) -> bool:
    """Up to the order of additions, and the rounding of each split's sum."""
    if found == DEFAULT:
        return True
    try:
        error = (_product(blob, x, found).float() - expected.float()).norm() / expected.float().norm()
    except RuntimeError:
        return False
    return float(error) < TOLERANCE


def _mm_search() -> Callable[..., tuple[int, int, int, int]] | None:
    private: Any = getattr(torch._C, "_cusparselt", None)
    return getattr(private, "mm_search", None)


def graph_time_s(call: Call, calls: int) -> float:
    """Time calls inside a CUDA graph: outside of one, cuSPARSELt's plan on the CPU takes longer than the product."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # After a capture that fails, torch leaves its own stream as the current one; the outer context restores it.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return min(_replay_s(graph) for _ in range(_REPLAYS)) / calls


def _replay_s(graph: torch.cuda.CUDAGraph) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3
