"""The cuSPARSELt path without a GPU: stand-ins for torch's functions that check every argument."""

import pytest
import torch
from torch import Tensor

from twofour.prune.packed import pack
from twofour.prune.solvers.magnitude import magnitude
from twofour.serve.kernels import cusparselt, select
from twofour.serve.kernels.cusparselt import CusparseltKernel


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs: dict[int, Tensor] = {}

    def compress(dense: Tensor) -> Tensor:
        assert dense.dim() == 2 and dense.is_contiguous() and dense.dtype in (torch.bfloat16, torch.float16)
        assert dense.shape[0] % 16 == 0 and dense.shape[1] % 16 == 0
        assert not bool(torch.signbit(dense[dense == 0]).any())
        blob = torch.zeros(dense.numel() * 9 // 16, dtype=dense.dtype)
        blobs[blob.data_ptr()] = dense
        return blob

    def multiply(blob: Tensor, other: Tensor, bias: Tensor | None = None, transpose_result: bool = False) -> Tensor:
        weight = blobs[blob.data_ptr()]
        assert other.dtype == weight.dtype and other.shape[0] == weight.shape[1] and other.shape[1] % 8 == 0
        assert other.t().is_contiguous() and transpose_result
        assert bias is None or (bias.dtype == weight.dtype and bias.shape == (weight.shape[0],))
        return torch.nn.functional.linear(other.t(), weight, bias)

    monkeypatch.setattr(torch, "_cslt_compress", compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 64), (2, 3, 64), (0, 64), (8, 64)])
def test_product(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight, bias = magnitude(torch.randn(32, 64).to(dtype)), torch.randn(32).to(dtype)
    kernel = CusparseltKernel.from_packed(pack(weight))
    x = torch.randn(shape).to(dtype)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(kernel(x, bias), expected, rtol=0.02, atol=0.02)  # padding changes the rounding
    assert kernel.nbytes == weight.nbytes * 9 // 16


def test_it_gives_back_what_is_stored() -> None:
    weight = magnitude(torch.randn(32, 64).bfloat16())
    packed = CusparseltKernel.from_packed(pack(-weight * 1.0)).packed()
    assert torch.equal(packed.unpack(), -weight) and torch.equal(packed.positions, pack(-weight).positions)


def test_refusals_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "multiples of 16 x 16, not 24 x 64" in str(cusparselt.refusal(pack(torch.zeros(24, 64).bfloat16())))
    assert "not torch.float32" in str(cusparselt.refusal(pack(torch.zeros(32, 64))))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    assert cusparselt.refusal(pack(torch.zeros(32, 64).bfloat16())) is None
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 800)
    assert "0.8.0" in str(cusparselt.warning())


def test_asking_for_it_on_the_cpu_says_why() -> None:
    with pytest.raises(Exception, match="it runs on cuda, the weight is on cpu"):
        select.choose(pack(torch.zeros(32, 64).bfloat16()), "cusparselt")
