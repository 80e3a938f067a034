"""lm_head in int8, from a folder: never tied again, multiplied as it is read back, in every family."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_families import FAMILIES, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import CheckpointError
from twofour.prune.format import head
from twofour.prune.format.checkpoint import Weights
from twofour.prune.label.convert import convert
from twofour.serve.model.dense_int8 import Int8Linear
from twofour.serve.model.loading import load_model

IDS = torch.arange(3, 43)[None]


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(IDS).logits
    return result


def exact(folder: Path, out: Path) -> Tensor:
    """The logits of the same model with the head read back from int8."""
    convert(folder, out, "dense")
    return logits(load_model(str(out), device="cpu", kernels="reference"))


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Within what rounding the activations and the sums to bfloat16 makes."""
    return bool((found - expected).float().norm() < 2e-2 * expected.float().norm())


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_it_multiplies_by_what_is_stored(tiny_head_folder: Path, tmp_path: Path, kernels: str) -> None:
    model = load_model(str(tiny_head_folder), device="cpu", kernels=kernels)
    assert isinstance(model.get_output_embeddings(), Int8Linear)
    found, expected = logits(model), exact(tiny_head_folder, tmp_path / "zeros")
    assert found.dtype == torch.bfloat16 and is_close(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_computes_in_the_dtype_of_the_model(tiny_head_folder: Path, tmp_path: Path, dtype: str) -> None:
    found = logits(load_model(str(tiny_head_folder), device="cpu", dtype=dtype))
    assert found.dtype == getattr(torch, dtype)
    assert is_close(found.bfloat16(), exact(tiny_head_folder, tmp_path / "zeros"))


def test_transformers_loads_it_and_never_ties_it(tiny_head_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_head_folder, variant="twofour", dtype="auto")
    expected = logits(load_model(str(tiny_head_folder), device="cpu"))
    assert isinstance(model.lm_head, Int8Linear) and torch.equal(logits(model), expected)
    model.tie_weights()
    assert isinstance(model.lm_head, Int8Linear) and torch.equal(logits(model), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tied: bool, tmp_path: Path) -> None:
    tiny(family, tie_word_embeddings=tied, initializer_range=0.3).bfloat16().save_pretrained(tmp_path / "dense")
    prune(tmp_path / "dense", tmp_path / "int8", PruneConfig(method="magnitude", lm_head="int8"))
    assert check(tmp_path / "int8").ok
    model = load_model(str(tmp_path / "int8"), device="cpu")
    assert isinstance(model.get_output_embeddings(), Int8Linear)
    expected = exact(tmp_path / "int8", tmp_path / "zeros")
    assert is_close(logits(model), expected) and check(tmp_path / "zeros").ok


Damage = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("lm_head.int8_scales"), r"lacks lm_head\.int8_scales"),
        (lambda t: t.pop("lm_head.int8_values"), r"lacks lm_head\.int8_values"),
        (lambda t: t.update({"lm_head.weight": torch.ones(320, 72)}), r"holds lm_head\.weight"),
        (
            lambda t: t.update({"lm_head.int8_values": t["lm_head.int8_values"].float()}),
            "int8_values is F32, by config",
        ),
        (
            lambda t: t.update({"lm_head.int8_scales": torch.ones(320, 1)}),
            r"lacks .*int8_scales.* in its proper shape|lm_head has scales",
        ),
        (lambda t: t["lm_head.int8_scales"].__setitem__((5, 1), torch.nan), "the scale nan at row 5, number 1"),
        (lambda t: t["lm_head.int8_values"].__setitem__((5, 1), -128), "the value -128 at row 5, column 1"),
    ],
)
def test_damage_is_refused(tiny_head_folder: Path, change: Damage, words: str) -> None:
    path = tiny_head_folder / "model.twofour.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        load_model(str(tiny_head_folder), device="cpu")


def test_a_version_that_knows_no_such_head_is_refused(tiny_head_folder: Path) -> None:
    path = tiny_head_folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["format_version"] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json says lm_head 'int8'"):
        load_model(str(tiny_head_folder), device="cpu")
    del config["quantization_config"]["lm_head"]  # as if it were all of version 1
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"holds lm_head\.int8_scales|lacks lm_head\.weight"):
        load_model(str(tiny_head_folder), device="cpu")


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_save_pretrained_gives_back_the_stored_tensors(tiny_head_folder: Path, tmp_path: Path, kernels: str) -> None:
    model = load_model(str(tiny_head_folder), device="cpu", kernels=kernels)
    model.save_pretrained(tmp_path / "out", variant="twofour")
    with Weights(tiny_head_folder) as before, Weights(tmp_path / "out") as after:
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
        head.read(after)
    again, first = (load_model(str(folder), device="cpu") for folder in (tmp_path / "out", tiny_head_folder))
    assert torch.equal(logits(again), logits(first))
