"""Prefill attention against the rule itself, as it is asked for on a CPU and, by stand-ins, on GPUs.

Which of torch's kernels a GPU takes is known from what each refuses (torch 2.11 to 2.13): flash takes no mask, 16 bits
and one head dim only; the memory-efficient one lets no heads share keys. `Kernels` refuses what they do.
"""

from typing import Any

import pytest
import torch
from paged_chunks import CHUNKS, DIM, HEADS, KEY_HEADS, VALUE_DIM, chunk, expected
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import CausalBias

from twofour.serve.engine.runners import attention
from twofour.serve.engine.runners.attention import Rule
from twofour.serve.engine.runners.paged import Layer

SDPA = functional.scaled_dot_product_attention


class Kernels:
    """Stands in for a GPU's attention: computes what flash or the memory-efficient one takes, and else fails."""

    def __init__(self, has_flash: bool) -> None:
        self.has_flash = has_flash
        self.taken: list[str] = []
        self.keys: list[int] = []

    def flash_takes(self, params: Any) -> bool:
        same_dim = params.query.shape[-1] == params.value.shape[-1]
        return self.has_flash and params.attn_mask is None and params.query.dtype != torch.float32 and same_dim

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, scale: float, is_causal: bool,
        enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        is_bias = isinstance(mask, CausalBias)
        same_dim = query.shape[-1] == values.shape[-1]
        fits_flash = (mask is None or is_bias) and query.dtype != torch.float32 and same_dim
        fits_efficient = not enable_gqa and query.shape[1] == keys.shape[1] == values.shape[1]
        assert (self.has_flash and fits_flash) or fits_efficient, "the math backend"
        assert is_causal == (mask is None) and not (is_causal and query.shape[2] != keys.shape[2])
        self.taken.append("flash" if self.has_flash and fits_flash else "efficient")
        self.keys.append(keys.shape[2])
        mask = mask._materialize() if isinstance(mask, CausalBias) else mask
        query = query.as_subclass(Tensor)
        return SDPA(query, keys, values, mask, scale=scale, is_causal=is_causal, enable_gqa=enable_gqa)


class Elsewhere(Tensor):
    """A tensor that says it is not on the CPU."""

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False


@pytest.mark.parametrize(("start", "rows", "window"), CHUNKS)
def test_a_chunk_on_a_cpu(start: int, rows: int, window: int) -> None:
    part, layer, query = chunk(start, rows, torch.float32)
    found = part.attend(query, layer, Rule(0.3, window))
    torch.testing.assert_close(found.double(), expected(part, layer, query, window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value_dim", [VALUE_DIM, 4])
@pytest.mark.parametrize("has_flash", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("start", "rows", "window"), CHUNKS)
def test_a_chunk_on_a_gpu_never_needs_the_math_backend(
    start: int, rows: int, window: int, dtype: torch.dtype, has_flash: bool, value_dim: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kernels = Kernels(has_flash)
    part, layer, query = chunk(start, rows, dtype, value_dim)
    monkeypatch.setattr(attention, "can_use_flash_attention", kernels.flash_takes)
    with monkeypatch.context() as patch:
        patch.setattr(attention.F, "scaled_dot_product_attention", kernels.attend)
        found = part.attend(query.as_subclass(Elsewhere), layer, Rule(0.3, window))
    error = (found.double() - expected(part, layer, query, window)).abs().max()
    assert float(error) < (0.03 if dtype == torch.bfloat16 else 1e-5)
    is_whole = not window or window >= start + rows
    is_flash = has_flash and dtype == torch.bfloat16 and value_dim == DIM and is_whole
    assert kernels.taken == ["flash" if is_flash else "efficient"]
    assert kernels.keys == [start + rows if is_whole else min(start + rows, rows + window - 1)]


def test_heads_that_share_nothing_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    part, layer, query = chunk(7, 6, torch.float32)
    monkeypatch.setattr(attention, "can_use_flash_attention", lambda params: False)
    monkeypatch.setattr(Tensor, "repeat_interleave", lambda *_: pytest.fail("copied"))
    part.attend(query[:, :KEY_HEADS].as_subclass(Elsewhere), layer, Rule(0.3, 3))


def test_a_bias_on_meta_tensors_has_the_shape_of_the_chunk() -> None:
    """torch's own dispatch of it, where there is no data."""
    part, layer, query = chunk(7, 6, torch.bfloat16)
    part.table = part.table.to("meta")
    found = part.attend(query.to("meta"), Layer(layer.keys.to("meta"), layer.values.to("meta")), Rule(0.3, 0))
    (mask,) = part.masks.values()
    assert isinstance(mask, CausalBias) and found.shape == (6, HEADS, VALUE_DIM)
