"""int8 values for kernels of floats: the same product, the stored bytes again, and less memory than dense takes."""

import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.rounding import to_int8
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels import select, trial
from twofour.serve.kernels.cpu import kernel as cpu_kernel
from twofour.serve.kernels.reference import ReferenceKernel
from twofour.serve.kernels.rounded import rounded
from twofour.serve.kernels.select import Candidate
from twofour.serve.kernels.triton import layout as triton_layout
from twofour.serve.kernels.triton.kernel import TritonKernel
from twofour.serve.model.linear import SparseLinear
from twofour.serve.model.loading import load_model
from twofour.serve.model.quantizer import sparse_linears

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def int8_weight(scale_columns: int, rows: int = 24, columns: int = 192, seed: int = 0) -> Packed:
    draw = torch.Generator().manual_seed(seed)
    return to_int8(pack(magnitude(torch.randn(rows, columns, generator=draw))), scale_columns)


def every_value(scale_columns: int) -> Packed:
    """Each int8 number in each row, zeros in kept places among them, by scales of all kinds."""
    weight = int8_weight(scale_columns, rows=40, columns=512)
    values = torch.arange(-128, 128, dtype=torch.int8).repeat(40, 1)
    assert weight.scales is not None
    scales = 10 ** torch.linspace(-3.9, 1, weight.scales.numel()).view_as(
        weight.scales
    )  # 128 x 500 is infinite in fp16
    return replace(weight, values=values, scales=scales)


def same(packed: Packed, other: Packed) -> bool:
    ours, theirs = packed.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[part], theirs[part]) for part in ours)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale_columns", [0, 64])
def test_the_stored_bytes_come_back_from_any_kernel(scale_columns: int, dtype: torch.dtype) -> None:
    packed = every_value(scale_columns)
    held, back = rounded(packed, dtype)
    assert back.values is None
    assert torch.equal(held.unpack(), packed.unpack().to(dtype))
    assert same(back.stored(held), packed)
    assert same(back.stored(ReferenceKernel.from_packed(held).packed()), packed)  # whose positions are its own
    if dtype in triton_layout.DTYPES:
        assert same(back.stored(TritonKernel.from_packed(held).packed()), packed)


@pytest.mark.parametrize("scale", [0.0, 3e-8, 600.0])
def test_values_that_the_dtype_cannot_tell_are_kept(scale: float) -> None:
    packed = every_value(0)
    assert packed.scales is not None
    packed = replace(packed, scales=torch.full_like(packed.scales, scale))
    held, back = rounded(packed, torch.float16)
    assert back.values is not None and same(back.stored(held), packed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_has_the_dtype_of_the_activations_when_it_is_built(
    tiny_int8_folder: Path, dtype: torch.dtype
) -> None:
    name = str(dtype).removeprefix("torch.")
    model = load_model(str(tiny_int8_folder), device="cpu", dtype=name, kernels="reference")
    for _, linear in sparse_linears(model):
        stored = linear.packed()
        assert stored.scales is not None and linear.choice is not None
        dense = linear.out_features * linear.in_features * dtype.itemsize
        assert linear.kernel_bytes == dense + stored.positions.nbytes + stored.scales.nbytes
        x = torch.randn(3, linear.in_features).to(dtype)
        assert torch.equal(linear(x), functional.linear(x, stored.unpack().to(dtype)))


def test_a_linear_that_is_cast_is_rounded_anew() -> None:
    linear = SparseLinear.empty(nn.Linear(192, 24, device="meta", bias=False), torch.int8, 64)
    packed = int8_weight(64)
    linear._hold(packed)
    linear.prepare("reference", dtype=torch.bfloat16)
    half = linear.to(torch.float16)
    x = torch.randn(3, 192).half()
    assert torch.equal(half(x), functional.linear(x, packed.unpack().half())) and same(half.packed(), packed)


class Resident(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: Counter[int] = Counter()
        self.nbytes = self.peak = 0

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        self.nbytes += 0 if self.alive[key] else nbytes
        self.alive[key] += 1
        self.peak = max(self.peak, self.nbytes)
        weakref.finalize(tensor, self._gone, key, nbytes)

    def _gone(self, key: int, nbytes: int) -> None:
        self.alive[key] -= 1
        self.nbytes -= 0 if self.alive[key] else nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return made


@pytest.mark.parametrize("kernel", ["cpu", "triton"])
def test_int8_takes_less_than_dense_at_every_moment(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its kernels are chosen, linear by linear: those of a CPU, and those of a GPU by their layout."""
    count, rows, columns = 48, 64, 256
    builds = {"cpu": cpu_kernel.CpuKernel.from_packed, "triton": TritonKernel.from_packed}
    refusals = {"cpu": cpu_kernel.refusal, "triton": triton_layout.refuses}
    if kernel == "cpu" and cpu_kernel.refusal(int8_weight(0)):
        pytest.skip("no CPU kernel")
    monkeypatch.setattr(select, "CANDIDATES", {kernel: Candidate("cpu", builds[kernel], refusals[kernel])})
    monkeypatch.setattr(trial, "_tried", {})
    monkeypatch.setattr(trial, "_multiply", lambda form, place: None)  # which is Triton's to do
    linears = [
        SparseLinear.empty(nn.Linear(columns, rows, device="meta", bias=False), torch.int8) for _ in range(count)
    ]
    resident = Resident()
    for seed, linear in enumerate(linears):
        packed = int8_weight(0, rows, columns, seed)
        linear._hold(packed)
        for tensor in packed.tensors().values():
            resident.note(tensor)
        del packed, tensor
    stored = resident.nbytes
    with resident:
        for linear in linears:
            linear.prepare("auto", dtype=torch.bfloat16)
    assert {linear.choice.kernel.name for linear in linears if linear.choice} == {kernel}
    dense = count * rows * columns * 2
    assert stored <= resident.nbytes < 0.7 * dense and resident.peak < dense
