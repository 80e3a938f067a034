"""Packed folders become transformers models with the same logits, and give back what they were given."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from twofour.prune.errors import CheckpointError, InputError, ModelError
from twofour.prune.format.checkpoint import Weights
from twofour.prune.format.packed import Packed, pack
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels import cpu, select, trial
from twofour.serve.model import loading
from twofour.serve.model.linear import SparseLinear
from twofour.serve.model.loading import load_model, weight_report
from twofour.serve.model.quantizer import sparse_linears

IDS = torch.arange(3, 43)[None]


def test_from_pretrained_with_the_variant(tiny_pruned_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_pruned_folder, variant="twofour", dtype="auto")
    ours = load_model(str(tiny_pruned_folder), device="cpu")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, ours(IDS).logits)
    assert len(list(sparse_linears(model))) == 14


@pytest.mark.parametrize(
    "imports",
    [
        "import twofour.serve; from transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM; import twofour.serve",
        "from transformers import AutoModelForCausalLM, PreTrainedModel; import twofour.serve",
    ],
)
def test_importing_serve_is_enough_in_any_order(tiny_pruned_folder: Path, imports: str) -> None:
    load = f"AutoModelForCausalLM.from_pretrained({str(tiny_pruned_folder)!r}, variant='twofour')"
    code = f"{imports}\nprint(type({load}.model.layers[0].mlp.up_proj).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "SparseLinear\n", done.stderr


def test_plain_from_pretrained_refuses(tiny_pruned_folder: Path) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tiny_pruned_folder)


def test_save_pretrained_gives_back_the_stored_tensors(tiny_pruned_folder: Path, tmp_path: Path) -> None:
    load_model(str(tiny_pruned_folder), device="cpu").save_pretrained(tmp_path / "out", variant="twofour")
    with Weights(tiny_pruned_folder) as before, Weights(tmp_path / "out") as after:
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_weight_report(tiny_pruned_folder: Path, tiny_model_folder: Path) -> None:
    dense = weight_report(load_model(str(tiny_model_folder), device="cpu"))
    expanded = weight_report(load_model(str(tiny_pruned_folder), device="cpu", kernels="reference"))
    assert (dense.sparse, expanded.sparse) == (False, True)
    assert dense.linear_bytes == expanded.linear_bytes
    ours = not cpu.available().startswith("none")
    # our dense kernel reads columns by 64: the two down_proj have 96
    assert dense.kernels == ({"dense": 12, "torch": 2} if ours else {"torch": 14})
    assert expanded.kernels == {"reference": 14}
    assert "expanded to dense" in expanded.notes[0]


@pytest.mark.skipif(cpu.available().startswith("none"), reason=cpu.available())
def test_one_copy_of_the_weights_in_memory() -> None:
    linear = SparseLinear(pack(magnitude(torch.randn(256, 512).bfloat16())))
    assert linear.kernel_bytes == 256 * 512 * 9 // 8
    assert not list(linear.buffers())


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_a_linear_moves_copies_and_loads_as_stored(kernels: str) -> None:
    packed = pack(magnitude(torch.randn(24, 64).bfloat16()))
    linear = SparseLinear(packed, torch.randn(24).bfloat16(), kernels)
    x = torch.randn(5, 64).bfloat16()
    state = linear.state_dict()
    assert torch.equal(state["values"], packed.values) and torch.equal(state["positions"], packed.positions)
    assert torch.equal(copy.deepcopy(linear)(x), linear(x))
    wide = copy.deepcopy(linear).to(torch.float32)
    torch.testing.assert_close(wide(x.float()).bfloat16(), linear(x), rtol=0.02, atol=0.02)
    other = SparseLinear(pack(magnitude(torch.randn(24, 64).bfloat16())), torch.zeros(24).bfloat16(), kernels)
    other.load_state_dict(state)
    assert torch.equal(other(x), linear(x))


def test_a_move_that_moves_nothing_lays_nothing_out_anew() -> None:
    linear = SparseLinear(pack(magnitude(torch.randn(24, 64).bfloat16())), torch.zeros(24).bfloat16())
    before = linear.choice
    assert linear.to("cpu").to(torch.bfloat16).choice is before
    assert linear.to(torch.float32).choice is not before and linear.bias is not None
    assert (linear.packed().values.dtype, linear.bias.dtype) == (torch.float32, torch.float32)


def test_sparse_linear_equals_the_dense_product() -> None:
    weight, bias = magnitude(torch.randn(40, 68)), torch.randn(40)
    x = torch.randn(2, 3, 68)
    expected = nn.functional.linear(x, weight, bias)
    assert torch.equal(SparseLinear(pack(weight), bias, "reference")(x), expected)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    path.write_text(json.dumps(config))


def test_unknown_versions_are_refused(tiny_pruned_folder: Path) -> None:
    change_config(tiny_pruned_folder, format_version=99)
    with pytest.raises(CheckpointError, match="format_version 99"):
        load_model(str(tiny_pruned_folder))


def test_foreign_quantisation_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised \(gptq\)"):
        load_model(str(folder))


def test_names_that_do_not_exist(tiny_pruned_folder: Path) -> None:
    with pytest.raises(InputError, match="no kernel is named 'fast'"):
        load_model(str(tiny_pruned_folder), kernels="fast")
    with pytest.raises(InputError, match="no dtype is named 'int4'"):
        load_model(str(tiny_pruned_folder), dtype="int4")
    with pytest.raises(InputError, match="is not a folder"):
        load_model("./nowhere")


def test_a_kernel_that_cannot_be_built_keeps_no_model_from_loading(
    tiny_pruned_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(packed: Packed, crossover_tokens: int) -> select.Kernel:
        raise RuntimeError("Failed to find C compiler. Set CC.\nmore")

    monkeypatch.setattr(trial, "_tried", {})
    monkeypatch.setitem(
        select.CANDIDATES, "cpu", replace(select.CANDIDATES["cpu"], build=build, refusal=lambda _: None)
    )
    report = weight_report(load_model(str(tiny_pruned_folder), device="cpu"))
    dropped = "cpu: RuntimeError: Failed to find C compiler. Set CC."
    assert report.kernels == {"reference": 14}
    assert f"dropped: {dropped} (14 of 14 2:4 linears)" in report.notes
    assert any(f"are expanded to dense ({dropped})" in note for note in report.notes)


def test_a_gpu_by_its_number_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert loading._device("cuda:1") == torch.device("cuda:1") == current.pop()
    assert loading._device(None) == loading._device("cuda") == torch.device("cuda") and not current
    with pytest.raises(InputError, match="there is no cuda:2, torch sees 2 CUDA devices; choose another"):
        loading._device("cuda:2")


def test_devices_that_are_not_there_are_refused_before_anything_is_read(
    tiny_pruned_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    for name in ("cuda", "cuda:1"):
        with pytest.raises(InputError, match="no CUDA device that torch can use"):
            load_model(str(tiny_pruned_folder), name)
    with pytest.raises(InputError, match="no device is named 'gpu'"):
        load_model(str(tiny_pruned_folder), "gpu")


@pytest.mark.parametrize("eos", ["x", ["x"], 0.5, True, {"x": 1}, [[1]], [2, None]])
def test_generation_that_ends_at_no_token_is_refused(tiny_model_folder: Path, tmp_path: Path, eos: object) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json has the eos_token_id .* token's number"):
        load_model(str(folder), device="cpu", kernels="reference")
