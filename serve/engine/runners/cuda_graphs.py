"""Capturing the decode steps of graphs.py with CUDA. Performance: not measured.

All graphs share one pool of memory: they are replayed one at a time, and none keeps a result in it. A step runs twice
before it is captured, since first calls compile, allocate and choose. In the second run waiting for the device is an
error: it would break a capture, and so it is found before one begins.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from twofour.serve.engine.runners import graphs
from twofour.serve.engine.runners.generic import GenericRunner
from twofour.serve.engine.runners.graphs import Captured, Launch, Shape
from twofour.serve.kernels.triton.kernel import TritonKernel
from twofour.serve.model.linear import SparseLinear


class CudaCapture:
    """Captures what a function launches on a device. Replays go to the stream that is current at that time."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, launch: Launch) -> Launch:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._warm_up(launch)
        # After a capture that fails, torch leaves its own stream as the current one; the outer context restores it.
        with torch.cuda.stream(current), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            launch()
        return graph.replay

    def _warm_up(self, launch: Launch) -> None:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            launch()
            with _waiting_refused():
                launch()
        current.wait_stream(self._stream)


@contextmanager
def _waiting_refused() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # that it does not find everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def capture_on_cuda(model: Any, eager: GenericRunner, shapes: Sequence[Shape]) -> Captured:
    """Capture the decode steps of a model that is on a GPU."""
    _prepare(model)
    torch.cuda.empty_cache()  # so that only the memory of the graphs is measured
    return graphs.try_capture(
        eager, shapes, CudaCapture(eager.device), lambda: torch.cuda.mem_get_info(eager.device)[0]
    )


def _prepare(model: Any) -> None:
    """Compile what the linears may launch, and let shared scratch memory grow, before the first capture."""
    for module in model.modules():
        if isinstance(module, SparseLinear) and module.choice and isinstance(module.choice.kernel, TritonKernel):
            module.choice.kernel.prepare(module.bias)
