"""Which algorithm of cuSPARSELt, and which split of its sums, multiplies a shape and a number of tokens fastest.

torch's search (`torch._C._cusparselt.mm_search`, a private name: looked up, never assumed) proposes one and says how
many algorithms there are. It times each once or a few times and cold, and knows nothing of a graph; so all of them
are timed here shortly, and the best, its proposal and the default again and longer. Without the private name the
default is kept: the public search is deprecated and forgets the split, which matters most.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import torch
from torch import Tensor

TOP = 3
SHORT, LONG = 10, 50  # calls in a measurement
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


def search(blob: Tensor, columns: int, tokens: int, time_s: Time) -> Algorithm:
    """Time what the library has for this many tokens; ties go to the default, then to the proposal."""
    propose = _mm_search()
    if propose is None:
        return DEFAULT
    x = torch.ones(tokens, columns, dtype=blob.dtype, device=blob.device)
    alg_id, split_k, split_k_mode, count = propose(blob, x.t(), None, None, None, True)
    proposed = Algorithm(alg_id, split_k, split_k_mode)

    def seconds(found: Algorithm, calls: int) -> float:
        try:
            return time_s(lambda: torch._cslt_sparse_mm(blob, x.t(), transpose_result=True, **vars(found)), calls)
        except RuntimeError:  # not every algorithm takes every shape, and the library says so only when asked to run
            return inf

    every = [Algorithm(number) for number in range(count)]
    best = sorted(every, key=lambda found: seconds(found, SHORT))[:TOP]
    finalists = list(dict.fromkeys((DEFAULT, proposed, *best)))
    return min(finalists, key=lambda found: seconds(found, LONG))


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
    with torch.cuda.graph(graph):
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
