"""Models with int8 values: loaded, moved, saved and copied bit for bit, computed in the dtype of the model."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from twofour.prune.errors import CheckpointError
from twofour.prune.format.checkpoint import Weights
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.rounding import to_int8
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels import cpu
from twofour.serve.kernels.cpu.kernel import CpuKernel
from twofour.serve.kernels.reference import ReferenceKernel
from twofour.serve.model.linear import SparseLinear
from twofour.serve.model.loading import load_model, weight_report
from twofour.serve.model.quantizer import sparse_linears

IDS = torch.arange(3, 43)[None]
NAME = "model.layers.0.self_attn.q_proj"
needs_cpu_kernel = pytest.mark.skipif(cpu.available().startswith("none"), reason=cpu.available())


def int8_weight(scale_columns: int, rows: int = 24, columns: int = 132, seed: int = 0) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    return to_int8(pack(magnitude(torch.randn(rows, columns, generator=generator))), scale_columns)


def is_same(packed: Packed, other: Packed) -> bool:
    ours, theirs = packed.tensors(), other.tensors()
    same = all(torch.equal(ours[part], theirs[part]) and ours[part].dtype == theirs[part].dtype for part in ours)
    return ours.keys() == theirs.keys() and same and packed.scale_columns == other.scale_columns


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_a_model_computes_in_its_dtype(tiny_int8_folder: Path, dtype: str | None) -> None:
    model = load_model(str(tiny_int8_folder), device="cpu", dtype=dtype)
    expected = torch.bfloat16 if dtype is None else getattr(torch, dtype)
    exact = load_model(str(tiny_int8_folder), device="cpu", dtype="float32", kernels="reference")
    with torch.inference_mode():
        logits, close = model(IDS).logits, exact(IDS).logits
    assert model.dtype == logits.dtype == expected
    assert torch.allclose(logits.float(), close, atol=1e-3 if dtype == "float32" else 5e-2)
    for _, linear in sparse_linears(model):
        assert linear.packed().values.dtype == torch.int8


@needs_cpu_kernel
def test_the_cpu_kernels_take_it(tiny_int8_folder: Path) -> None:
    report = weight_report(load_model(str(tiny_int8_folder), device="cpu"))
    assert report.kernels == {"cpu": 14} and report.notes == ()


def test_save_pretrained_gives_back_the_stored_tensors(tiny_int8_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_int8_folder, variant="twofour", dtype="auto")
    model.save_pretrained(tmp_path / "out", variant="twofour")
    with Weights(tiny_int8_folder) as before, Weights(tmp_path / "out") as after:
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
    again, first = (load_model(str(folder), device="cpu") for folder in (tmp_path / "out", tiny_int8_folder))
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, first(IDS).logits)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("scale_columns", [0, 64])
def test_a_linear_moves_copies_and_loads_as_stored(scale_columns: int, kernels: str) -> None:
    packed, bias = int8_weight(scale_columns), torch.randn(24).bfloat16()
    linear = SparseLinear(packed, bias, kernels)
    x = torch.randn(5, 132).bfloat16()
    y = linear(x)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        moved = copy.deepcopy(linear).to(dtype)
        assert is_same(moved.packed(), packed) and moved.bias is not None and moved.bias.dtype == dtype
        assert moved(x.to(dtype)).dtype == dtype
        torch.testing.assert_close(moved(x.to(dtype)).bfloat16(), y, rtol=0.02, atol=0.1)
    state = linear.state_dict()
    assert state.keys() == {"bias", "values", "positions", "scales"}
    other = SparseLinear(int8_weight(scale_columns, seed=1), torch.zeros(24).bfloat16(), kernels)
    other.load_state_dict(state)
    assert is_same(other.packed(), packed) and torch.equal(other(x), y)
    assert torch.equal(copy.deepcopy(linear)(x), y)


@pytest.mark.parametrize("ready", [True, False])
def test_a_cast_leaves_values_and_scales_alone(ready: bool) -> None:
    """Also before they are with a kernel, as buffers."""
    packed = int8_weight(64)
    linear = SparseLinear(packed, torch.zeros(24))
    if not ready:
        linear._hold(packed)
    assert is_same(linear.to(torch.bfloat16).half().to("cpu").packed(), packed)


def test_floats_and_int8_do_not_load_into_each_other() -> None:
    floats = pack(magnitude(torch.randn(24, 132)))
    for ours, theirs in ((int8_weight(0), floats), (floats, int8_weight(0))):
        linear = SparseLinear(ours)
        with pytest.raises(CheckpointError, match=r"values are torch\..*, this linear holds torch\..*; build it"):
            linear.load_state_dict(SparseLinear(theirs).state_dict(), strict=False)
        assert is_same(linear.packed(), ours)
    with pytest.raises(RuntimeError, match="size mismatch for scales"):
        SparseLinear(int8_weight(64)).load_state_dict(SparseLinear(int8_weight(0)).state_dict())


def damage(folder: Path, name: str, tensor: Tensor | None) -> None:
    path = folder / "model.twofour.safetensors"
    tensors = {key: stored for key, stored in load_file(path).items() if key != name}
    save_file(tensors if tensor is None else tensors | {name: tensor}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "tensor", "words"),
    [
        (
            "scales",
            None,
            f"lacks {NAME}.scales|{NAME} has the scale",
        ),  # transformers makes some up, if only for a moment
        ("scales", torch.full((64, 1), torch.nan), f"{NAME} has the scale nan"),
        ("scales", torch.ones(64, 3), rf"lacks .*scales.* in its proper shape|{NAME} has (the scale|scales)"),
        ("values", torch.ones(64, 32), rf"{NAME}\.values is F32, by config\.json it is I8"),
    ],
)
def test_damage_is_refused(tiny_int8_folder: Path, part: str, tensor: Tensor | None, words: str) -> None:
    damage(tiny_int8_folder, f"{NAME}.{part}", tensor)
    with pytest.raises(CheckpointError, match=words):
        load_model(str(tiny_int8_folder), device="cpu")


@pytest.mark.parametrize(("key", "value"), [("scale_columns", 32), ("scale_columns", None), ("values_dtype", "int4")])
def test_unknown_kinds_are_refused(tiny_int8_folder: Path, key: str, value: object) -> None:
    path = tiny_int8_folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"config.json says {key} {value!r}"):
        load_model(str(tiny_int8_folder))


@needs_cpu_kernel
@pytest.mark.parametrize("scale_columns", [0, 64])
def test_more_tokens_than_the_crossover_go_through_panels(scale_columns: int) -> None:
    packed, bias = int8_weight(scale_columns), torch.randn(24).bfloat16()
    few, many = CpuKernel.from_packed(packed), CpuKernel.from_packed(packed, crossover_tokens=6)
    x = torch.randn(7, 132).bfloat16()
    assert torch.equal(many(x[:6], bias), few(x[:6], bias))
    assert torch.equal(many(x, bias), functional.linear(x, packed.unpack().bfloat16(), bias))
    assert torch.equal(many(x, bias), cpu.linear(x, many.weight, bias, crossover=6))


@needs_cpu_kernel
def test_half_precision_activations_are_taken_as_float32() -> None:
    packed, x, bias = int8_weight(0), torch.randn(3, 132).half(), torch.randn(24).half()
    kernel = CpuKernel.from_packed(packed)
    for given in (None, bias):
        y = kernel(x, given)
        assert y.dtype == torch.float16
        assert torch.equal(y, kernel(x.float(), None if given is None else given.float()).half())


def test_the_reference_expands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = int8_weight(64)
    kernel = ReferenceKernel.from_packed(packed)
    dense = packed.unpack()
    assert kernel.nbytes == packed.nbytes + dense.nbytes
    x = torch.randn(3, 132)
    with torch.inference_mode():
        assert torch.equal(kernel(x, None), functional.linear(x, dense))
        first = kernel(x.bfloat16(), None)
    assert torch.equal(first, functional.linear(x.bfloat16(), dense.bfloat16()))
    assert kernel.nbytes == packed.nbytes + dense.nbytes // 2 and is_same(kernel.packed(), packed)
    monkeypatch.setattr(Packed, "unpack", lambda self: pytest.fail("expanded again"))
    assert torch.equal(kernel(x.bfloat16(), None), first)
    y = kernel(x.bfloat16().requires_grad_(), None)  # kept weights are no tensors of inference mode
    y.sum().backward()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("taken", [torch.bfloat16, torch.float16, torch.float32])
def test_the_reference_takes_other_activations_and_keeps_what_was_stored(
    stored: torch.dtype, taken: torch.dtype
) -> None:
    packed = pack(magnitude(torch.randn(8, 16)).to(stored))
    linear = SparseLinear(packed, torch.zeros(8).to(taken), "reference")
    x = torch.randn(3, 16).to(taken)
    assert torch.equal(linear(x), functional.linear(x, packed.unpack().to(taken)))
    assert is_same(linear.packed(), packed)
