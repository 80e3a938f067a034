"""Which compiler a GPU needs before the Triton kernels are offered there."""

import pytest
import torch

from twofour.serve.kernels.triton import decode as triton_decode


@pytest.mark.parametrize(
    ("version", "capability", "found"),
    [
        *(("3.6.0", (8, 0), "sm_80"), ("3.6.0", (9, 0), "sm_90"), ("3.5.1", (9, 0), "none: triton 3.5.1 is older")),
        *(("3.8.2", (10, 0), "none: triton 3.8.2 is older than 3.9"), ("3.9.0", (10, 3), "sm_103")),
        *(("3.8.0", (12, 0), "none: triton 3.8.0 is older"), ("3.10.0", (12, 0), "sm_120"), ("3.9.0", (7, 5), "none")),
    ],
)
def test_each_gpu_has_the_oldest_compiler_that_is_right_for_it(
    monkeypatch: pytest.MonkeyPatch, version: str, capability: tuple[int, int], found: str
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(triton, "__version__", version)
    assert triton_decode.available().startswith(found)
