"""Every family on its way from a dense folder to served logits: nothing is left dense, and nothing else is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from engine_loops import pieces_of, run
from torch import Tensor, nn

from twofour.prune import PruneConfig, check, prune
from twofour.prune.format.checkpoint import Weights
from twofour.prune.label.convert import convert
from twofour.serve.engine.assembly import assemble
from twofour.serve.engine.types import EngineConfig, Prompt, Sampling
from twofour.serve.model.linear import SparseLinear
from twofour.serve.model.loading import load_model

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
OPT: dict[str, Any] = {"word_embed_proj_dim": 64, "ffn_dim": 96}
GEMMA2: dict[str, Any] = {"head_dim": 16, "sliding_window": 6, "attn_logit_softcapping": 1.0}
GEMMA3: dict[str, Any] = {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
QWEN3_MOE: dict[str, Any] = {**EXPERTS, "moe_intermediate_size": 32, "head_dim": 16}
FAMILIES: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {}),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, {"sliding_window": 6}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {}),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {"head_dim": 16}),
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, GEMMA2),
    "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, GEMMA3),
    "phi": (hf.PhiConfig, hf.PhiForCausalLM, {}),
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, {}),
    "opt": (hf.OPTConfig, hf.OPTForCausalLM, OPT),
    "gpt_neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, {}),
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM, {"num_local_experts": 4}),
    "qwen3_moe": (hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM, QWEN3_MOE),
    "olmoe": (hf.OlmoeConfig, hf.OlmoeForCausalLM, EXPERTS),
}
# The stored linears of one block; 7 elsewhere.
BLOCK = {"phi": 6, "phi3": 4, "opt": 6, "gpt_neox": 4, "mixtral": 4 + 4 * 3, "qwen3_moe": 4 + 4 * 3, "olmoe": 4 + 4 * 3}
TIED = ("gemma2", "gemma3", "opt")
ROUTED = ("mixtral", "qwen3_moe", "olmoe")
IDS = torch.arange(1, 49).view(3, 16) * 6

SaveTokenizer = Callable[[Path], object]


@pytest.fixture(scope="module")
def save_tokenizer(tiny_model_folder: Path) -> SaveTokenizer:
    return hf.AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained  # type: ignore[no-any-return]


def dense_model(family: str, folder: Path, save_tokenizer: SaveTokenizer) -> Path:
    """Write a model whose every parameter matters: biases and gains are random too."""
    torch.manual_seed(0)
    config_class, model_class, extra = FAMILIES[family]
    model = model_class(config_class(**SHAPE | extra | {"tie_word_embeddings": family in TIED}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    with Weights(folder) as weights:
        return dict(weights)


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        result: Tensor = load_model(str(folder), device="cpu")(IDS).logits
    return result


def served_scores(folder: Path) -> list[list[float]]:
    """Log probabilities of every token but the first, and of one more, from the loop that the server runs."""
    loop, _ = assemble.start(EngineConfig(str(folder), device="cpu", max_num_batched_tokens=32))
    sampling = Sampling(max_tokens=1, temperature=0, logprobs=0, prompt_logprobs=0)
    reports = run(loop, [[Prompt(str(i), tuple(row), sampling) for i, row in enumerate(IDS.tolist())]])
    firsts = [pieces_of(reports, str(i))[0] for i in range(len(IDS))]
    assert [first.error for first in firsts] == [None] * len(IDS)
    return [[entry.logprob for entry in (*p.prompt_logprobs, *p.logprobs) if entry] for p in firsts]


def own_scores(folder: Path) -> list[list[float]]:
    """The same from transformers' own forward, with the attention that computes all that the model asks for."""
    model = load_model(str(folder), device="cpu")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        scores = model(IDS).logits.log_softmax(-1)
    last = scores[:, -1].max(-1).values[:, None]
    found: list[list[float]] = torch.cat([scores[:, :-1].gather(2, IDS[:, 1:, None])[..., 0], last], 1).tolist()
    return found


def is_block_linear(name: str, tensor: Tensor) -> bool:
    """By its stored name and shape alone: a matrix of a layer that is no router."""
    return tensor.dim() == 2 and ".layers." in name and not name.endswith(".gate.weight")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_pruned_checked_and_served(family: str, tmp_path: Path, save_tokenizer: SaveTokenizer) -> None:
    source, packed, dense = tmp_path / "source", tmp_path / "packed", tmp_path / "dense"
    before = stored(dense_model(family, source, save_tokenizer))
    linears = {name.removesuffix(".weight") for name, tensor in before.items() if is_block_linear(name, tensor)}
    assert len(linears) == 2 * BLOCK.get(family, 7)

    manifest = prune(source, packed, PruneConfig(preset="fast", samples=4, length=32)).manifest
    convert(packed, dense, "dense")
    assert check(packed).ok and check(dense).ok
    assert manifest["linears"].keys() == linears
    routers = {name for name, why in manifest["dense"].items() if why.startswith("a router")}
    assert len(routers) == (2 if family in ROUTED else 0) and all(f"{name}.weight" in before for name in routers)

    after = stored(dense)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        if name.removesuffix(".weight") in linears:
            assert int((tensor.unflatten(-1, (-1, 4)) != 0).sum(-1).max()) == 2, name
        else:
            assert torch.equal(tensor, before[name]), name

    served = load_model(str(packed), device="cpu")
    assert sum(isinstance(module, SparseLinear) for module in served.modules()) == len(linears)
    assert [name for name, module in served.named_modules() if isinstance(module, nn.Linear)] == ["lm_head"]
    torch.testing.assert_close(logits(packed), logits(dense), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(packed), logits(source), rtol=0.01, atol=0.01)
    for found, expected in zip(served_scores(packed), own_scores(dense), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_int8_experts(tmp_path: Path, save_tokenizer: SaveTokenizer) -> None:
    source = dense_model("qwen3_moe", tmp_path / "source", save_tokenizer)
    prune(source, tmp_path / "int8", PruneConfig(preset="fast", values="int8", samples=4, length=32))
    convert(tmp_path / "int8", tmp_path / "dense", "dense")
    assert check(tmp_path / "int8").ok and check(tmp_path / "dense").ok
    torch.testing.assert_close(logits(tmp_path / "int8"), logits(tmp_path / "dense"), rtol=1e-3, atol=1e-3)
