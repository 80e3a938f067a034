"""The attention of one layer over its paged cache, of any model, in one call: src/layer_attention.h.

Every token attends by itself, in an order of additions that follows from its position: it gets the same bits alone or
beside others, in one chunk or in several, on one thread or on more.
"""

from array import array
from collections.abc import Sequence
from struct import pack

import torch
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.serve.kernels.cpu.extension import missing
from twofour.serve.kernels.cpu.step import FAULTS, TOKEN_GROUP, Chunks
from twofour.serve.kernels.cpu.weight import require

DIMS, MOST_DIMS = 16, 256  # the size of a head is a multiple of the one, up to the other


def takes(head_dim: int, block_size: int, dtype: torch.dtype) -> bool:
    """Whether the kernel attends with such heads over such blocks here."""
    fits = head_dim % DIMS == 0 and 0 < head_dim <= MOST_DIMS and block_size % TOKEN_GROUP == 0
    return fits and dtype is torch.bfloat16 and not missing()


class LayerCache:
    """The keys and values of a layer, in blocks."""

    def __init__(self, blocks: int, block_size: int, key_heads: int, head_dim: int) -> None:
        self.blocks, self.block_size, self.key_heads, self.head_dim = blocks, block_size, key_heads, head_dim
        self.numbers = torch.empty(2, blocks, key_heads * block_size * head_dim, dtype=torch.bfloat16)
        self._cpu = require()

    def attend(
        self, chunks: Chunks, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int = 0, cap: float = 0
    ) -> Tensor:
        """Keep keys and values [tokens, key heads, dim], then attend [tokens, heads, dim] -> the same.

        `window` and `cap` are as in Rule; 0: none. Raises InputError, with nothing computed, for what is not in the
        cache.
        """
        heads = query.shape[1]
        self._check(query, (chunks.tokens, heads, self.head_dim))
        for each in (key, value):
            self._check(each, (chunks.tokens, self.key_heads, self.head_dim))
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        attended = torch.empty_like(query)
        keys, values = self.numbers
        job = array(
            "B",
            pack(
                "=11q2d5q", chunks.address, len(chunks), chunks.tokens, keys.data_ptr(),
                values.data_ptr(), self.blocks, self.block_size, heads, self.key_heads, self.head_dim, window, scale,
                cap, query.data_ptr(), key.data_ptr(), value.data_ptr(), attended.data_ptr(), torch.get_num_threads(),
            ),
        )  # fmt: skip
        if fault := self._cpu.attend(job.buffer_info()[0]):
            raise InputError(f"the attention cannot be computed: {FAULTS[fault]}")
        return attended

    def _check(self, rows: Tensor, shape: Sequence[int]) -> None:
        if rows.shape != shape or rows.dtype is not torch.bfloat16 or not rows.is_cpu or shape[1] % self.key_heads:
            raise InputError(f"rows of bfloat16 {list(shape)} are wanted, got {rows.dtype} {list(rows.shape)}")
