"""What of a model is pruned, what stays dense, and every model that is refused before any work."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pruned_families import FAMILIES, SHAPE, tiny
from safetensors.torch import load_file, save_file
from torch import nn

from twofour.prune import PruneConfig, prune
from twofour.prune.errors import ModelError, TwofourError
from twofour.prune.format import Format
from twofour.prune.format.folder import read_config, write_json
from twofour.prune.format.weights import Weights
from twofour.prune.model import anatomy


def refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        anatomy.dissect(model)


def test_conv1d_is_refused_by_name() -> None:
    model = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=101))
    refused(model, r"transformer\.h\.0\.attn\.c_attn\.weight \(32x96, of Conv1D\) is not the weight of a linear")


def test_fused_experts_of_another_family_are_refused_by_name() -> None:
    config = hf.Qwen2MoeConfig(**SHAPE, num_experts=4, moe_intermediate_size=48)
    refused(hf.Qwen2MoeForCausalLM(config), r"layers\.0\.mlp\.\S+ \(4x96x32, of Qwen2MoeExperts\) is not the weight")


def test_a_width_that_4_does_not_divide_is_refused_by_name() -> None:
    model = tiny("llama", intermediate_size=66)
    refused(model, r"model\.layers\.0\.mlp\.down_proj has 66 inputs, which 4 does not divide")


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens", "model.layers.2.mlp.up_proj"])
def test_a_linear_tied_to_something_else_is_refused(target: str) -> None:
    model = tiny("llama", vocab_size=48, pad_token_id=0, num_hidden_layers=3, intermediate_size=48)
    model.model.layers[1].mlp.up_proj.weight = model.get_submodule(target).weight
    refused(model, r"layers\.\d\.mlp\.up_proj\.weight is tied to (lm_head|model)\S*\.weight")


def test_tied_embeddings_are_no_obstacle() -> None:
    parts = anatomy.dissect(tiny("llama", tie_word_embeddings=True))
    assert list(parts.dense) == ["lm_head"] and len(parts.linears) == 21


def test_linears_outside_the_blocks_stay_dense_and_are_listed() -> None:
    parts = anatomy.dissect(tiny("opt", word_embed_proj_dim=16))
    assert sorted(parts.dense) == ["lm_head", "model.decoder.project_in", "model.decoder.project_out"]


def test_two_dtypes_are_refused() -> None:
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.bfloat16()
    refused(model, "stored in one dtype")


def test_no_list_of_blocks_or_two_of_them() -> None:
    model = tiny("llama")
    model.more = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    refused(model, "has 2 lists of 3 decoder blocks")
    model.config.num_hidden_layers = 5
    refused(model, "has 0 lists of 5 decoder blocks")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "quantised": ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
    "pruned": ({"model_type": "llama", "quantization_config": {"quant_method": "twofour"}}, r"\(twofour\)"),
    "multimodal": (
        {"model_type": "llama4", "vision_config": {}},
        "llama4 is multimodal .* its text model cannot be taken",
    ),
    "experts and images": ({"model_type": "qwen3_vl_moe", "text_config": {}}, "qwen3_vl_moe is multimodal"),
    "encoder-decoder": ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder-decoder"),
    "unknown": ({"model_type": "newest"}, "knows no causal language model 'newest'; upgrade"),
    "nameless": ({}, "knows no causal language model None"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(case: str) -> None:
    config, message = CONFIGS[case]
    with pytest.raises(ModelError, match=message):
        anatomy.refuse_config(config)


@pytest.mark.parametrize("quantization", [["gptq"], "gptq", 4])
def test_a_quantisation_of_any_kind_is_refused(quantization: Any) -> None:
    with pytest.raises(ModelError, match=r"quantised \(an unknown method\)"):
        anatomy.refuse_config({"model_type": "llama", "quantization_config": quantization})


@pytest.mark.parametrize("kind", [["llama"], {}, 5])
def test_a_model_type_that_is_no_name_is_refused(kind: Any) -> None:
    with pytest.raises(ModelError, match="knows no causal language model"):
        anatomy.refuse_config({"model_type": kind})


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]


def changed(source: Path, folder: Path, change: Change) -> Path:
    """Copy a model with another config.json, or other tensors."""
    shutil.copytree(source, folder)
    config, tensors = read_config(folder), load_file(folder / "model.safetensors")
    change(config, tensors)
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("form", ["packed", "dense"])
def test_the_dtype_is_that_of_the_files(tiny_model_folder: Path, tmp_path: Path, form: Format) -> None:
    """config.json names another: nothing gets wider by that, and what is written names the right one."""
    source = changed(tiny_model_folder, tmp_path / "source", lambda config, _: config.update(dtype="float32"))
    report = prune(source, tmp_path / "out", PruneConfig(method="magnitude", format=form))
    assert report.manifest["values"] == {"dtype": "bfloat16"}
    (note,) = report.manifest["fallbacks"]
    assert note.startswith("config.json of the base model says float32, its linears are stored as bfloat16")
    config = read_config(tmp_path / "out")
    assert config["dtype"] == "bfloat16"
    with Weights(source) as before, Weights(tmp_path / "out") as after:
        assert {after.dtype(name) for name in after if not name.endswith("positions")} == {"BF16"}
        assert sum(tensor.nbytes for tensor in after.values()) <= sum(tensor.nbytes for tensor in before.values())


def test_other_tensors_keep_their_dtypes(tiny_model_folder: Path, tmp_path: Path) -> None:
    def change(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()

    source = changed(tiny_model_folder, tmp_path / "source", change)
    prune(source, tmp_path / "out", PruneConfig(method="magnitude"))
    with Weights(tmp_path / "out") as weights:
        assert weights.dtype("model.norm.weight") == "F32" and weights.dtype("model.embed_tokens.weight") == "BF16"


UP = "model.layers.1.mlp.up_proj.weight"
CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "two dtypes": (lambda _, t: t.update({UP: t[UP].float()}), f"several dtypes .*F32 as {UP.removesuffix('.weight')}"),
    "another dtype": (lambda _, t: t.update({n: w.to(torch.float64) for n, w in t.items()}), "stored as F64; give"),
    "another shape": (
        lambda c, _: c.update(vocab_size=10**15),
        r"embed_tokens\.weight has shape \[320, 64\], by config",
    ),
    "many blocks": (lambda c, _: c.update(num_hidden_layers=10**15), "num_hidden_layers 10+, the files hold"),
    "other blocks": (lambda c, _: c.update(num_hidden_layers=3), r"stores no model\.layers\.2\.self_attn"),
    "no model": (lambda c, _: c.update(num_attention_heads="four"), "describes no model that transformers can make"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_config_that_contradicts_the_tensors_is_refused_before_anything_is_loaded(
    tiny_model_folder: Path, tmp_path: Path, case: str
) -> None:
    change, message = CONTRADICTIONS[case]
    folder = changed(tiny_model_folder, tmp_path / "source", change)
    with pytest.raises(TwofourError, match=message):
        anatomy.stored_dtype(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_that_are_fine(family: str) -> None:
    anatomy.refuse_config(FAMILIES[family][0](**(SHAPE | FAMILIES[family][2])).to_dict())
