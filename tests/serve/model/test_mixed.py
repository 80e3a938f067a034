"""Mixed folders as transformers models: each linear is what its scheme says, and computes with what is stored."""

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from mixed_folders import mixed
from pruned_families import FAMILIES, tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from twofour.prune.format.checkpoint import Weights
from twofour.prune.format.folder import read_config
from twofour.prune.format.head import Head
from twofour.prune.format.quantization import stated
from twofour.prune.format.schemes import Scheme
from twofour.prune.label.check import check
from twofour.prune.label.convert import convert
from twofour.serve.model.dense_int8 import Int8Linear
from twofour.serve.model.linear import SparseLinear
from twofour.serve.model.loading import load_model, weight_report

IDS = torch.arange(3, 43)[None]


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(IDS).logits
    return result


def scheme_of(module: nn.Module) -> Scheme:
    if isinstance(module, SparseLinear):
        return "2:4" if module.packed().scales is None else "2:4-int8"
    return "dense-int8" if isinstance(module, Int8Linear) else "dense"


@pytest.fixture
def tiny_mixed_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return mixed(tiny_model_folder, tmp_path / "mixed")


def test_each_linear_is_what_its_scheme_says(tiny_mixed_folder: Path) -> None:
    model = load_model(str(tiny_mixed_folder), "cpu")
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | SparseLinear | Int8Linear)}
    quantization = read_config(tiny_mixed_folder)["quantization_config"]
    kinds = stated(quantization, [name for name in linears if name != "lm_head"])
    assert {kind.scheme for kind in kinds.values()} == set(get_args(Scheme))
    assert {name: scheme_of(linears[name]) for name in kinds} == {name: kind.scheme for name, kind in kinds.items()}


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral", "qwen3_moe"])
def test_float32_logits_are_those_of_the_weights_expanded_in_plain_transformers(family: str, tmp_path: Path) -> None:
    source = dense_folder(family, tmp_path / "dense")
    folder = mixed(source, tmp_path / "mixed")
    assert check(folder).ok, check(folder).faults
    assert len(set(check_schemes(folder))) >= 3
    convert(folder, tmp_path / "zeros", "dense")
    assert check(tmp_path / "zeros").ok, check(tmp_path / "zeros").faults
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "zeros", dtype=torch.float32)
    found, expected = logits(load_model(str(folder), "cpu", dtype="float32")), logits(plain)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(found, logits(AutoModelForCausalLM.from_pretrained(source)), rtol=0.01, atol=0.01)


def dense_folder(family: str, folder: Path) -> Path:
    """A float32 model of which every parameter matters."""
    if family in FAMILIES:
        model = tiny(family, tie_word_embeddings=False)
    else:
        from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

        shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 101}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
        torch.manual_seed(0)
        if family == "mixtral":
            model = MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=4))
        else:
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **experts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def check_schemes(folder: Path) -> list[str]:
    from twofour.prune.format.folder import read_json

    return list(read_json(folder / "twofour.json")["schemes"].values())


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_bfloat16_logits_are_near_those_of_the_weights_expanded(
    tiny_mixed_folder: Path, tmp_path: Path, kernels: str
) -> None:
    convert(tiny_mixed_folder, tmp_path / "zeros", "dense")
    expected = logits(load_model(str(tmp_path / "zeros"), "cpu", kernels="reference")).float()
    found = logits(load_model(str(tiny_mixed_folder), "cpu", kernels=kernels))
    assert found.dtype == torch.bfloat16 and (found.float() - expected).norm() < 2e-2 * expected.norm()


def test_transformers_loads_it_by_its_variant(tiny_mixed_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_mixed_folder, variant="twofour", dtype="auto")
    assert Counter(map(type, model.modules()))[Int8Linear] > 0
    assert torch.equal(logits(model), logits(load_model(str(tiny_mixed_folder), "cpu")))


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_save_pretrained_gives_back_the_stored_tensors(family: str, kernels: str, tmp_path: Path) -> None:
    folder = mixed(dense_folder(family, tmp_path / "dense"), tmp_path / "mixed")
    load_model(str(folder), "cpu", kernels=kernels).save_pretrained(tmp_path / "out", variant="twofour")
    with Weights(folder) as before, Weights(tmp_path / "out") as after:
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
    again, first = (load_model(str(each), "cpu") for each in (tmp_path / "out", folder))
    assert torch.equal(logits(again), logits(first))


def test_a_head_in_int8_comes_with_it(tiny_model_folder: Path, tmp_path: Path) -> None:
    head = Head("lm_head", "model.embed_tokens.weight", (320, 64))
    folder = mixed(tiny_model_folder, tmp_path / "mixed", head=head)
    assert check(folder).ok and read_config(folder)["quantization_config"]["lm_head"] == "int8"
    model = load_model(str(folder), "cpu")
    assert isinstance(model.get_output_embeddings(), Int8Linear)
    notes = " | ".join(weight_report(model).notes)
    assert "lm_head is int8 in the checkpoint" in notes and "dense linears are int8 in the checkpoint" in notes


def test_stored_and_rounded_linears_are_told_apart(tiny_mixed_folder: Path) -> None:
    schemes = Counter(check_schemes(tiny_mixed_folder))
    said = {
        values: weight_report(load_model(str(tiny_mixed_folder), "cpu", dense_values=values))
        for values in (None, "int8")
    }
    stored = f"{schemes['dense-int8']} dense linears are int8 in the checkpoint"
    rounded = f"{schemes['dense']} dense linears are rounded to int8 at load, as asked for"
    assert said[None].notes == (stored,) and said["int8"].notes == (rounded, stored)
    assert said[None].dense_values == "bfloat16, int8" and said["int8"].dense_values == "int8"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("lacks", r"lacks model\.layers\.0\.mlp\.down_proj\.int8_scales"),
        ("float", r"int8_values is F32, by config\.json it is I8"),
        ("nan", r"down_proj has the scale nan at row 5, number 1"),
        ("-128", r"down_proj has the value -128 at row 5, column 1"),
        ("both", r"holds model\.layers\.0\.mlp\.down_proj\.weight"),
    ],
)
def test_damage_is_named(tiny_model_folder: Path, tmp_path: Path, change: str, words: str) -> None:
    from safetensors.torch import load_file, save_file

    from twofour.prune.errors import CheckpointError

    name = "model.layers.0.mlp.down_proj"
    folder = mixed(tiny_model_folder, tmp_path / "mixed", lambda n: "dense-int8" if n == name else "2:4")
    path = folder / "model.twofour.safetensors"
    tensors = load_file(path)
    if change == "lacks":
        del tensors[f"{name}.int8_scales"]
    elif change == "float":
        tensors[f"{name}.int8_values"] = tensors[f"{name}.int8_values"].float()
    elif change == "nan":
        tensors[f"{name}.int8_scales"][5, 1] = torch.nan
    elif change == "-128":
        tensors[f"{name}.int8_values"][5, 1] = -128
    else:
        tensors[f"{name}.weight"] = torch.ones(64, 96, dtype=torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        load_model(str(folder), device="cpu")
