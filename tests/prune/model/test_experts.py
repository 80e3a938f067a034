"""Fused experts taken apart, against the fused ones; what calibration knows of each, against routing by hand."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pruned_families import tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import ModelError, NonFiniteError
from twofour.prune.format import pattern
from twofour.prune.model import anatomy, batches, experts
from twofour.prune.model.experts import Experts
from twofour.prune.recovery import training
from twofour.prune.run import calibrate, journal
from twofour.prune.solving.sparsegpt import sparsegpt
from twofour.prune.solving.statistics import Hessian, Norms, Statistic

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM),
    "qwen3_moe": (hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM),
    "olmoe": (hf.OlmoeConfig, hf.OlmoeForCausalLM),
}


def tiny(family: str = "qwen3_moe", **changes: Any) -> Any:
    torch.manual_seed(0)
    config_class, model_class = FAMILIES[family]
    model = model_class(config_class(**SHAPE | changes)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def routing(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the experts of the first layer are called with: the states of all tokens, and who sees them."""
    calls: list[tuple[Tensor, Tensor]] = []
    fused = model.model.layers[0].mlp.experts
    handle = fused.register_forward_pre_hook(lambda module, args: calls.append((args[0].clone(), args[1].clone())))
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    ((states, chosen),) = calls
    return states, chosen


def collected(model: Any, ids: Tensor, mask: Tensor | None = None, new: Any = Hessian) -> dict[str, Statistic]:
    """The statistics of the first block by the last part of their names: experts.0.gate_proj and so on."""
    parts = anatomy.dissect(model)
    with torch.no_grad():
        observer = calibrate.collect(parts.blocks[0], 0, batches.record(parts, ids, mask), new)
    return {name.partition("mlp.")[2]: statistic for names, statistic in observer.groups() for name in names}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_experts_taken_apart_are_the_fused_ones(family: str, dtype: torch.dtype, tolerance: float) -> None:
    fused, ids = tiny(family).to(dtype), tokens()
    apart = copy.deepcopy(fused)
    experts.take_apart(apart)
    assert sum(isinstance(module, Experts) for module in apart.modules()) == 2
    with torch.no_grad():
        torch.testing.assert_close(apart(ids).logits, fused(ids).logits, rtol=tolerance, atol=tolerance)
        for expert in apart.model.layers[1].mlp.experts:  # up and gate change places
            gate, up, _ = (expert.get_submodule(name) for name in expert._names)
            gate.weight, up.weight = up.weight, gate.weight
        assert not torch.allclose(apart(ids).logits, fused(ids).logits, rtol=tolerance, atol=tolerance)


def test_they_look_into_the_same_memory() -> None:
    model = tiny()
    fused = model.model.layers[0].mlp.experts
    experts.take_apart(model)
    apart = model.model.layers[0].mlp.experts
    assert apart[5].up_proj.weight.data_ptr() == fused.gate_up_proj[5, 48:].data_ptr()
    assert torch.equal(apart[5].gate_proj.weight, fused.gate_up_proj[5, :48])
    assert apart[5].down_proj.weight.data_ptr() == fused.down_proj[5].data_ptr()


def test_an_expert_knows_its_own_tokens_and_some_of_the_layer() -> None:
    """(1 - a) H_e + a H_all, both per token, a = k / (k + n_e); for down, H_all is of all experts' inputs."""
    model, ids = tiny(), tokens()
    fused = copy.deepcopy(model.model.layers[0].mlp.experts)
    states, chosen = routing(model, ids)
    found = collected(model, ids)
    inner: list[Tensor] = []
    for expert in range(8):
        own = states[(chosen == expert).any(1)].double()
        gate, up = (own.float() @ fused.gate_up_proj[expert].T).chunk(2, dim=1)
        inner.append((torch.nn.functional.silu(gate) * up).double())
        expect(found[f"experts.{expert}.gate_proj"], own, states.double())
        assert found[f"experts.{expert}.up_proj"] is found[f"experts.{expert}.gate_proj"]
    for expert, own in enumerate(inner):
        expect(found[f"experts.{expert}.down_proj"], own, torch.cat(inner))
    assert sum(found[f"experts.{expert}.gate_proj"].tokens for expert in range(8)) == 5 * 16 * 2


def expect(found: Statistic, own: Tensor, everyone: Tensor) -> None:
    assert isinstance(found, Hessian) and found.tokens == len(own)
    width = own.shape[1]
    share = width / (width + len(own))
    wanted = (1 - share) * own.T @ own / max(1, len(own)) + share * everyone.T @ everyone / len(everyone)
    actual = found.matrix.double() / (width + len(own))
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_wanda_shrinks_in_the_same_way() -> None:
    model, ids = tiny(), tokens()
    hessians, norms = collected(copy.deepcopy(model), ids), collected(model, ids, new=Norms)
    for name, statistic in norms.items():
        torch.testing.assert_close(statistic.squares, hessians[name].squares, rtol=1e-4, atol=1e-4)


def test_an_expert_without_tokens_is_pruned_by_what_the_layer_sees() -> None:
    model, ids = tiny(), tokens(1, 2)
    dense = copy.deepcopy(model.model.layers[0].mlp.experts)
    states, chosen = routing(model, ids)
    unseen = next(expert for expert in range(8) if not bool((chosen == expert).any()))
    solve: calibrate.Solve = lambda weight, h: sparsegpt(weight, h.matrix)  # type: ignore[attr-defined] # noqa: E731
    parts = anatomy.dissect(model)
    first, second = calibrate.walk(parts, batches.record(parts, ids), solve, Hessian)
    assert len(first.weights) == len(second.weights) == 4 + 8 * 3
    assert all(pattern.first_violation(weight) is None for weight in first.weights.values())  # type: ignore[arg-type]
    path = f"model.layers.0.mlp.experts.{unseen}"
    assert first.linears[f"{path}.gate_proj"].tokens == first.linears[f"{path}.down_proj"].tokens == 0
    expected = sparsegpt(dense.gate_up_proj[unseen], states.T @ states)
    found = torch.cat([first.weights[f"{path}.gate_proj"], first.weights[f"{path}.up_proj"]])  # type: ignore[list-item]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_bad_input_of_an_expert_is_named_with_its_place() -> None:
    model, ids = tiny(), tokens()
    _, chosen = routing(model, ids)
    first = int((chosen == 5).any(1).nonzero()[0])
    model.model.layers[0].mlp.experts.gate_up_proj[5] *= 1e30
    place = f"sample {first // 16}, position {first % 16}"
    with pytest.raises(NonFiniteError, match=rf"experts\.5\.down_proj is NaN or infinite at {place};"):
        collected(model, ids)


def test_padding_is_told_apart() -> None:
    model, ids, mask = tiny(), tokens(3, 12), torch.ones(3, 12, dtype=torch.bool)
    mask[1, 8:] = mask[2, 5:] = False
    found = collected(model, ids, mask)
    for part in ("gate_proj", "down_proj"):
        assert sum(found[f"experts.{expert}.{part}"].tokens for expert in range(8)) == (12 + 8 + 5) * 2


def saved(model: Any, folder: Path, tokenizer: Path) -> Path:
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def test_experts_are_recovered_too(tmp_path: Path, tiny_model_folder: Path) -> None:
    source = saved(tiny("mixtral", vocab_size=320), tmp_path / "source", tiny_model_folder)
    manifest = prune(
        source, tmp_path / "out", PruneConfig(preset="best", train="blocks", samples=8, length=32)
    ).manifest
    assert check(tmp_path / "out").ok and len(manifest["linears"]) == 2 * (4 + 8 * 3)
    assert all(outcome["after"] < outcome["before"] for outcome in manifest["recovery"]["blocks"])
    assert manifest["dense"].keys() == {"lm_head", *(f"model.layers.{i}.block_sparse_moe.gate" for i in range(2))}


def test_training_is_kept_where_an_expert_has_seen_no_token_yet(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tiny("mixtral", vocab_size=320), tmp_path / "source", tiny_model_folder)
    config = PruneConfig(preset="best", samples=3, length=2)  # steps of 3 tokens, 8 experts
    moments = set[int]()
    save = journal.Journal.save_training

    def watch(self: journal.Journal, now: training.Training) -> None:
        moments.add(sum(name.startswith("steps.") and bool(steps) for name, steps in (now.state or {}).items()))
        save(self, now)

    monkeypatch.setattr(training, "SAVE_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 0)
    monkeypatch.setattr(journal.Journal, "save_training", watch)
    (fallback,) = prune(source, tmp_path / "out", config).manifest["fallbacks"]
    assert "linears of experts saw fewer than 32 tokens (the least 0)" in fallback
    assert len(moments) > 1 and min(moments) < len(anatomy.dissect(anatomy.load(source)).linears)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_under_other_names_are_refused_before_any_work(
    family: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    source = saved(tiny(family, vocab_size=320), tmp_path / "source", tiny_model_folder)
    weights = load_file(source / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}  # as of the body without a head
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "short.txt").write_text("read, it would be refused")
    config = PruneConfig(calibration=str(tmp_path / "short.txt"), samples=4, length=32)
    with pytest.raises(ModelError, match=r"stores no model\.layers\.0\.self_attn\.q_proj\.weight: .* save it again"):
        prune(source, tmp_path / "out", config)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "short.txt"}
