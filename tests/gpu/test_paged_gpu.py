"""Prefill attention on a device with torch's math backend forbidden: whatever is asked for, another kernel takes."""

import pytest
import torch
from paged_chunks import CHUNKS, chunk, expected
from torch.nn.attention import SDPBackend, sdpa_kernel

from twofour.serve.engine.runners.attention import Rule

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ALL_BUT_MATH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
WITHOUT_CUDNN = ALL_BUT_MATH[:2]  # as on GPUs for which torch does not prefer it


@pytest.mark.parametrize("backends", [ALL_BUT_MATH, WITHOUT_CUDNN], ids=["all", "without cudnn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("start", "rows", "window"), [*CHUNKS, (600, 512, 0), (600, 512, 300)])
def test_a_chunk_is_attended_without_the_math_backend(
    start: int, rows: int, window: int, dtype: torch.dtype, backends: list[SDPBackend]
) -> None:
    part, layer, query = chunk(start, rows, dtype, device="cuda")
    with torch.inference_mode(), sdpa_kernel(backends):
        found = part.attend(query, layer, Rule(0.3, window))
    error = (found.cpu().double() - expected(part, layer, query, window)).abs().max()
    assert float(error) < (5e-3 if dtype == torch.float32 else 0.03)  # TF32 may multiply


def test_a_long_context_needs_no_memory_for_its_scores() -> None:
    """512 tokens after 16,384: the scores of the six heads alone would be 50 MB a copy, in float32 twice that."""
    part, layer, query = chunk(16_384, 512, torch.bfloat16, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        part.attend(query, layer, Rule(0.3, 0))
    assert torch.cuda.max_memory_allocated() - before < 16 << 20
