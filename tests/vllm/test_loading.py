"""What is loaded, how much of it is held, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from vllm_models import Forms, Tensors, damaged, dense_model, greedy, ours, prune, pruned
from vllm_runs import PROMPTS, TOKENS, Vllm

from twofour.prune.format.head import Head
from twofour.serve.model.loading import load_model, weight_report

LAYER = "model.layers.1.self_attn"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return pruned(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def unpruned(llama: Forms) -> Path:
    return llama.packed.parent / "unpruned"


@pytest.fixture(scope="session")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder in bfloat16, whose weights our CPU kernel takes."""
    folder = tmp_path_factory.mktemp("models")
    dense = dense_model(folder / "dense", "qwen2", dtype=torch.bfloat16)
    return prune(dense, folder / "packed", "packed")


DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "values of one of three": (lambda t: t.pop(f"{LAYER}.k_proj.values"), f"lacks {LAYER}.k_proj.values"),
    "positions of one of three": (lambda t: t.pop(f"{LAYER}.v_proj.positions"), f"lacks {LAYER}.v_proj.positions"),
    "a whole linear": (
        lambda t: [t.pop(f"{LAYER}.o_proj.{part}") for part in ("values", "positions")],
        f"lacks {LAYER}.o_proj.values",
    ),
    "a NaN": (lambda t: t[f"{LAYER}.q_proj.values"][3].fill_(float("nan")), f"{LAYER}.q_proj.values holds NaN"),
    "positions": (lambda t: t[f"{LAYER}.q_proj.positions"][3, 2].fill_(0), f"{LAYER}.q_proj has the invalid position"),
    "integers for floats": (
        lambda t: t.update({f"{LAYER}.o_proj.values": t[f"{LAYER}.o_proj.values"].to(torch.int8)}),
        f"{LAYER}.o_proj does not take values that are torch.int8",
    ),
    "another shape": (
        lambda t: t.update({f"{LAYER}.o_proj.values": t[f"{LAYER}.o_proj.values"][:, :-2].contiguous()}),
        f"{LAYER}.o_proj",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_missing_or_corrupt_is_named(vllm: Vllm, llama: Forms, tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    answer = vllm.ask(damaged(tmp_path / "damaged", llama.packed, change))
    assert answer["error"] == "ValueError" and message in answer["message"]


INT8_DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "values": (lambda t: t.pop(f"{LAYER}.k_proj.values"), f"lacks {LAYER}.k_proj.values"),
    "scales": (lambda t: t.pop(f"{LAYER}.k_proj.scales"), f"lacks {LAYER}.k_proj.scales"),
    "head": (lambda t: t.pop("lm_head.int8_scales"), "lm_head"),
}


@pytest.mark.parametrize("damage", INT8_DAMAGES)
def test_missing_int8_tensors_are_named(vllm: Vllm, unpruned: Path, tmp_path: Path, damage: str) -> None:
    head = Head("lm_head", "model.embed_tokens.weight", (320, 128))
    change, message = INT8_DAMAGES[damage]
    folder = damaged(tmp_path / "damaged", prune(unpruned, tmp_path / "int8", "packed", 0, head), change)
    answer = vllm.ask(folder)
    assert answer["error"] == "ValueError" and message in answer["message"]


@pytest.mark.parametrize("name", ["q_proj", "o_proj"])
def test_a_weight_that_is_missing_or_not_2_of_4_is_not_packed(
    vllm: Vllm, llama: Forms, tmp_path: Path, name: str
) -> None:
    options = {"quantization": "twofour"}
    full = damaged(tmp_path / "full", llama.dense, lambda t: t[f"{LAYER}.{name}.weight"][5, :4].fill_(1.0))
    answer = vllm.ask(full, options=options)
    assert answer["error"] == "ValueError"
    assert f"{LAYER}.{name} is not 2:4 at row 5, columns 0-3" in answer["message"]
    less = damaged(tmp_path / "less", llama.dense, lambda t: t.pop(f"{LAYER}.{name}.weight"))
    answer = vllm.ask(less, options=options)
    assert answer["error"] == "ValueError" and f"lacks {LAYER}.{name}.weight" in answer["message"]


def test_a_folder_of_an_unknown_version_is_refused(vllm: Vllm, llama: Forms, tmp_path: Path) -> None:
    folder = damaged(tmp_path / "newer", llama.packed, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    answer = vllm.ask(folder)
    assert answer["error"] in ("ValueError", "ValidationError") and "format_version 9" in answer["message"]


def test_linears_that_stay_dense(vllm: Vllm, unpruned: Path, tmp_path: Path) -> None:
    """A whole layer of vLLM may be dense; a part of one may not."""
    keep = [f"{LAYER}.{name}_proj" for name in ("q", "k", "v", "o")]
    some = prune(unpruned, tmp_path / "some", "packed", None, None, *keep)
    dense = prune(unpruned, tmp_path / "dense", "dense", None, None, *keep)
    assert vllm.tokens(some) == greedy(dense, PROMPTS, TOKENS)
    assert vllm.tokens(dense, options={"quantization": "twofour"}) == vllm.tokens(some)
    answer = vllm.ask(prune(unpruned, tmp_path / "part", "packed", None, None, keep[0]))
    assert answer["error"] == "ValueError" and "q_proj is dense, " in answer["message"]


@pytest.mark.parametrize("packed", [".experts.", ".experts.3.w2"], ids=["all", "one linear of one"])
def test_packed_experts_are_refused(vllm: Vllm, tmp_path: Path, packed: str) -> None:
    folder = pruned(tmp_path, "mixtral").packed
    config = json.loads((folder / "config.json").read_text())
    ignore = config["quantization_config"]["ignore"]
    config["quantization_config"]["ignore"] = [name for name in ignore if packed not in name]
    (folder / "config.json").write_text(json.dumps(config))
    answer = vllm.ask(folder)
    assert answer["error"] == "ValueError" and "experts is 2:4" in answer["message"]


def test_a_model_takes_as_much_as_in_our_server(vllm: Vllm, bfloat16: Path) -> None:
    """And nothing of what was loaded is left beside the layouts of kernels."""
    found = vllm.ask(bfloat16, held=True, options={"dtype": "bfloat16"})
    report = weight_report(load_model(str(bfloat16)))
    assert "error" not in found, found
    assert found["kernels"] == ["CpuKernel"] and report.kernels["cpu"] == 14
    assert len(found["layers"]) == 8  # qkv, o, gate and up, down
    rows = 320 - 320 % 64 + 64 * (320 % 64 > 0)  # vLLM pads the vocabulary
    assert found["bytes"] <= report.weight_bytes + 2 * (rows - 320) * 128 * 2 + 256 * 32 * 2 * 4
    stored = [["torch.uint8", rows, columns] for rows in (256, 128, 512) for columns in (16, 32)]
    assert not [matrix for matrix in found["matrices"] if matrix in stored]
    assert ["torch.bfloat16", 256, 64] not in found["matrices"]  # values of q, k and v
    assert found["threads"] == 2


@pytest.mark.parametrize("scale_columns", [0, 64], ids=["a scale for each row", "a scale for each 64 columns"])
def test_int8_is_its_dense_expansion(vllm: Vllm, tmp_path: Path, scale_columns: int) -> None:
    forms = pruned(tmp_path, "qwen2", scale_columns)
    found = vllm.ask(forms.packed, held=True, options={"dtype": "float32"})
    assert found["kernels"] == ["CpuKernel"]
    assert [tokens[:8] for tokens in found["tokens"]] == [tokens[:8] for tokens in ours(forms.packed)]
    expanded = vllm.ask(forms.dense, options={"dtype": "float32"})
    for mine, its in zip(found["logprobs"], expanded["logprobs"], strict=True):
        assert mine == pytest.approx(its, abs=1e-3)  # our kernel rounds activations to 16 bits


@pytest.mark.parametrize("tied", [True, False])
def test_an_int8_head(vllm: Vllm, tmp_path: Path, tied: bool) -> None:
    """Against our own model, whose head is the same; its embeddings are in the checkpoint as well."""
    dense = dense_model(tmp_path / "dense", "llama", tie_word_embeddings=tied)
    source = "model.embed_tokens.weight" if tied else "lm_head.weight"
    folder = prune(dense, tmp_path / "packed", "packed", 0, Head("lm_head", source, (320, 128)))
    found = vllm.ask(folder, held=True, options={"dtype": "float32"})
    assert "lm_head" in found["layers"] and "DenseInt8Kernel" in found["kernels"]
    assert found["tokens"] == ours(folder)


def test_vllm_can_be_told_to_miss_norms_and_biases(vllm: Vllm, bfloat16: Path, tmp_path: Path) -> None:
    """They are its own, and by default it does not look for them in a quantized model."""
    options = {"dtype": "bfloat16", "model_loader_extra_config": {"enable_weights_track": True}}
    assert vllm.tokens(bfloat16, options=options) == vllm.tokens(bfloat16, "bfloat16")
    less = damaged(tmp_path / "less", bfloat16, lambda t: t.pop("model.layers.0.input_layernorm.weight"))
    answer = vllm.ask(less, options=options)
    assert answer["error"] == "ValueError" and "model.layers.0.input_layernorm.weight" in answer["message"]
