"""Scratch memory for a dense weight that lives for one product: one buffer per device, as large as its largest use.

A captured graph keeps the address that it saw, so a buffer that was outgrown is never freed; and while a graph is
being captured the buffer does not grow: what does not fit comes from the memory of that graph. If the largest weight is
prepared first, there is only one buffer. Products on one device must follow each other on one stream.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_lock = threading.Lock()  # two threads that launch on one stream: expand, multiply, expand, multiply
_buffers: dict[torch.device, Tensor] = {}
_outgrown: list[Tensor] = []


@contextmanager
def borrowed(rows: int, columns: int, like: Tensor) -> Iterator[Tensor]:  # [rows, columns]
    """Lend uninitialised memory in the dtype and on the device of `like`, until what uses it is launched."""
    with _lock:
        memory = _memory(rows * columns * like.itemsize, like.device)
        yield memory.view(like.dtype).view(rows, columns)


def _memory(size: int, device: torch.device) -> Tensor:  # uint8 [size]
    buffer = _buffers.get(device)
    if buffer is not None and len(buffer) >= size:
        return buffer[:size]
    with torch.inference_mode(False):  # it outlives the mode of its first user
        fresh = torch.empty(size, dtype=torch.uint8, device=device)
    if not _capturing(device):
        _outgrown.extend([] if buffer is None else [buffer])
        _buffers[device] = fresh
    return fresh


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
