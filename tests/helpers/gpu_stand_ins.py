"""A CPU in the place of a GPU: `python gpu_stand_ins.py DIR STAGE...` rehearses stages of a session.

Triton's kernels run in its interpreter, and stand-ins multiply where cuSPARSELt would. All else is what a GPU runs.
"""

import os
import sys

import torch
from torch import Tensor

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports the kernels


class Cusparselt:
    """torch's functions of cuSPARSELt, by a weight that is kept as it came."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []

    def compress(self, dense: Tensor) -> Tensor:
        self._weights.append(dense)
        return torch.full((dense.shape[0], dense.shape[1] * 9 // 16), float(len(self._weights) - 1), dtype=dense.dtype)

    def multiply(
        self, blob: Tensor, x: Tensor, bias: Tensor | None = None, transpose_result: bool = True, **chosen: int
    ) -> Tensor:
        return torch.nn.functional.linear(x.t(), self._weights[int(blob[0, 0])], bias)


def install() -> None:
    from twofour.serve.kernels.cusparselt import search as cusparselt_search

    library = Cusparselt()
    torch._cslt_compress = library.compress
    torch._cslt_sparse_mm = library.multiply
    torch.backends.cusparselt.version = lambda: 801
    cusparselt_search._mm_search = lambda: None  # a torch with the library has a search, which wants a device


if __name__ == "__main__":
    install()
    from twofour.bench.gpu.day import REHEARSAL
    from twofour.bench.gpu.stage import main

    torch.set_num_threads(1)
    results, *stages = sys.argv[1:]
    statuses = [main(REHEARSAL, [stage, "--results", results, "--seconds", "300"]) for stage in stages]
    raise SystemExit(max(statuses))
