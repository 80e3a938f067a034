"""The kernel object that a 2:4 linear holds: what it keeps, gives back, refuses, and where it changes its way."""

from dataclasses import replace

import pytest
import torch

from twofour.prune.format.packed import Packed, pack
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels.triton import decode as triton_decode
from twofour.serve.kernels.triton.kernel import TritonKernel, refusal


def weight(rows: int = 8, columns: int = 64) -> Packed:
    return pack(magnitude(torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))).bfloat16())


def test_it_holds_one_copy_of_the_values_and_gives_the_stored_tensors_back() -> None:
    packed = weight(128, 256)
    kernel = TritonKernel.from_packed(packed)
    assert kernel.packed().values.data_ptr() == packed.values.data_ptr()
    assert torch.equal(kernel.packed().positions, packed.positions)
    assert kernel.nbytes == packed.nbytes + kernel.weight.arrivals.nbytes


def test_the_crossover_says_how_many_tokens_the_decode_kernel_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[str] = []
    for name in ("decode", "_multiply_expanded"):
        monkeypatch.setattr(triton_decode, name, lambda x, *_, name=name: ways.append(name) or x.new_empty(len(x), 8))
    monkeypatch.setattr(triton_decode, "_capability", lambda device: (9, 0))
    kernel = TritonKernel.from_packed(weight())
    for crossover, tokens in ((3, 3), (3, 4), (0, 1), (10**9, 129)):
        replace(kernel, crossover_tokens=crossover)(torch.zeros(tokens, 64).bfloat16(), None)
    assert ways == ["decode", "_multiply_expanded", "_multiply_expanded", "_multiply_expanded"]


def test_a_refusal_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_decode, "available", lambda: "none: no CUDA device")
    assert refusal(weight()) == "no Triton kernel (no CUDA device)"
    monkeypatch.setattr(triton_decode, "available", lambda: "sm_90")
    assert refusal(weight()) is None
    assert refusal(pack(torch.zeros(2, 8))) == "the Triton kernels take bfloat16 and float16 values, got torch.float32"


def test_it_is_imported_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton is not installed" in str(refusal(weight()))
