"""FP8 is read back as its formulas say, and every other quantisation is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_models import FORMATS, compressed, in_fp8, plain
from multimodal_models import changed
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from twofour.prune.errors import CheckpointError, ModelError
from twofour.prune.format import fp8
from twofour.prune.format.dense import Dense
from twofour.prune.model import anatomy

UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_those_that_the_formula_gives(tiny_model_folder: Path, tmp_path: Path, kind: str) -> None:
    meant = in_fp8(tiny_model_folder, tmp_path / "fp8", kind)
    with Dense(tmp_path / "fp8") as tensors:
        assert {name: tensors.dtype(name) for name in meant} == dict.fromkeys(meant, "BF16")
        assert "quantization_config" not in tensors.config and tensors.config["dtype"] == "bfloat16"
        (note,) = tensors.notes
        assert note.startswith("dequantised from FP8 (") and f"{len(meant)} weights" in note
    loaded = anatomy.load(tmp_path / "fp8").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in meant.items())


def test_transformers_reads_the_same_out_of_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(96, 64, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 4, generator=generator)
    theirs = Fp8Dequantize(None)._dequantize_one(values, scales, torch.bfloat16)
    assert torch.equal(fp8.dequantised(values, scales, (32, 16), "w"), theirs)


@pytest.mark.parametrize("kind", ["fp8 blocks", "fp8 tensor"])
def test_transformers_loads_the_same(tiny_model_folder: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("accelerate")
    meant = in_fp8(tiny_model_folder, tmp_path / "fp8", kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(theirs[name], weight) for name, weight in meant.items())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind.startswith("compressed")])
def test_compressed_tensors_loads_the_same(tiny_model_folder: Path, tmp_path: Path, kind: str) -> None:
    for package in ("accelerate", "compressed_tensors"):
        pytest.importorskip(package)
    meant = in_fp8(tiny_model_folder, tmp_path / "fp8", kind)
    expanded = CompressedTensorsConfig(run_compressed=False)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fp8", dtype=torch.bfloat16, quantization_config=expanded
    ).state_dict()
    assert all(torch.equal(theirs[name], weight) for name, weight in meant.items())


def test_rows_of_more_than_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(70, 30, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, generator=torch.Generator().manual_seed(1))
    whole = fp8.dequantised(values, scales, (32, 16), "w")
    monkeypatch.setattr(fp8, "ROWS", 24)
    assert torch.equal(fp8.dequantised(values, scales, (32, 16), "w"), whole)


REFUSED: dict[str, tuple[Any, str]] = {
    "gptq": ({"quant_method": "gptq"}, r"\(gptq\)"),
    "no name": (["fp8"], r"\(an unknown method\)"),
    "int8": (
        compressed("channel") | {"config_groups": {"a": {"weights": {"num_bits": 8, "type": "int"}}}},
        "compressed",
    ),
    "sparse, too": (compressed("channel") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "float-quantized"),
    "an FP8 cache": (compressed("channel") | {"kv_cache_scheme": {"num_bits": 8}}, "float-quantized"),
    "groups of columns": (compressed("group", group_size=16), "float-quantized"),
    "no block": (compressed("block"), "float-quantized"),
    "no size": (plain([0, 128]), r"\(fp8\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_quantisations_are_refused_by_name(case: str) -> None:
    quantization, message = REFUSED[case]
    for config in ({"quantization_config": quantization}, {"text_config": {"quantization_config": quantization}}):
        with pytest.raises(ModelError, match=f"already quantised .*{message}.*; give the unquantised original"):
            fp8.method_of(config)


DAMAGE: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "no scale": ({f"{UP}.weight_scale_inv": None}, rf"{UP}\.weight is in FP8 and has no weight_scale_inv"),
    "no weight": (
        {f"{UP}.weight": torch.zeros(96, 64).bfloat16()},
        rf"{UP}\.weight_scale_inv is the scale of no weight",
    ),
    "other blocks": ({f"{UP}.weight_scale_inv": torch.ones(2, 2)}, r"is \[96, 64\], its scales are \[2, 2\]"),
    "another float": ({f"{UP}.weight": torch.zeros(96, 64).to(torch.float8_e5m2)}, "is F8_E5M2, and only"),
    "a scale of no kind": ({f"{UP}.weight_scale_inv": torch.ones(3, 4, dtype=torch.uint8)}, "are torch.uint8; give"),
    "an infinite scale": ({f"{UP}.weight_scale_inv": torch.full((3, 4), torch.inf)}, "a scale of .* is not finite"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_by_name(tiny_model_folder: Path, tmp_path: Path, case: str) -> None:
    tensors, message = DAMAGE[case]
    in_fp8(tiny_model_folder, tmp_path / "fp8", "fp8 blocks")
    changed(tmp_path / "fp8", tensors)
    with pytest.raises(CheckpointError, match=message):
        anatomy.load(tmp_path / "fp8")
