"""The walk over tiny models of many families against hooks on the whole model."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pruned_families import FAMILIES, tiny, tokens
from torch import Tensor, nn

from twofour.prune.errors import FactorError, ModelError, NonFiniteError
from twofour.prune.format import pattern
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.rounding import to_int8
from twofour.prune.model import anatomy, batches
from twofour.prune.progress import Step
from twofour.prune.run import calibrate
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.solving.sparsegpt import sparsegpt
from twofour.prune.solving.statistics import Hessian, Norms, Statistic

LINEARS = {"phi": 6, "phi3": 4, "opt": 6, "gpt_neox": 4}  # of a block; 7 elsewhere
GROUPS = {"phi": 3}  # attention and mlp side by side, on one input


def keep(weight: Tensor, statistic: Statistic) -> Tensor:
    return weight.clone()


def by_magnitude(weight: Tensor, statistic: Statistic) -> Tensor:
    return magnitude(weight)


def walk(
    parts: anatomy.Anatomy, ids: Tensor, solve: calibrate.Solve, new: calibrate.NewStatistic, **options: Any
) -> Iterator[calibrate.PrunedBlock]:
    return calibrate.walk(parts, batches.record(parts, ids, options.pop("mask", None)), solve, new, **options)


def watch(model: nn.Module, names: list[str], ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The inputs of some linears in a run of the whole model, as rows of real tokens."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.__setitem__(name, args[0].detach().clone())
        )
        for name in names
    ]
    with torch.no_grad():
        model(ids, use_cache=False, **({} if mask is None else {"attention_mask": mask.long()}))
    for handle in handles:
        handle.remove()
    rows = slice(None) if mask is None else mask.flatten()
    return {name: inputs.flatten(0, -2)[rows] for name, inputs in seen.items()}


def capture(kept: list[tuple[Tensor, Statistic]], solve: calibrate.Solve) -> calibrate.Solve:
    def wrapped(weight: Tensor, statistic: Statistic) -> Tensor:
        kept.append((weight.clone(), statistic))
        return solve(weight, statistic)

    return wrapped


@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_that_changes_nothing_sees_what_the_model_sees(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_TOKENS", 32)  # batches of 2, 2 and 1 samples
    model, ids, kept = tiny(family), tokens(), list[tuple[Tensor, Statistic]]()
    parts = anatomy.dissect(model)
    with torch.no_grad():
        before = model(ids).logits
    blocks = list(walk(parts, ids, capture(kept, keep), Hessian))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    assert [len(block.weights) for block in blocks] == [LINEARS.get(family, 7)] * 3
    inputs = watch(model, list(parts.linears), ids)
    assert len(kept) == 3 * GROUPS.get(family, 4)  # q k v, o, gate up, down
    for name, linear in parts.linears.items():
        (found,) = [s for w, s in kept if any(torch.equal(rows, linear.weight[0].float()) for rows in w)]
        assert isinstance(found, Hessian) and found.tokens == 80
        expected = inputs[name].double().T @ inputs[name].double()
        torch.testing.assert_close(found.matrix.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("family", "changes"), [*((family, {}) for family in FAMILIES), ("gemma2", {"final_logit_softcapping": 0.5})]
)
def test_the_states_behind_the_last_block_are_all_that_the_predictions_need(family: str, changes: Any) -> None:
    model, ids = tiny(family, **changes), tokens()
    parts = anatomy.dissect(model)
    text = batches.record(parts, ids, batch_tokens=32)
    for index, block in enumerate(parts.blocks):
        batches.propagate(block, index, text)
    with torch.no_grad():
        expected = model(ids).logits
    for block in parts.blocks:
        for linear in block.linears.values():
            linear.weight.zero_()
    for batch, some, wanted in zip(text, ids.split(2), expected.split(2), strict=True):
        torch.testing.assert_close(batches.logits_behind(parts, some, batch.hidden), wanted)
    assert not torch.allclose(model(ids).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_later_blocks_see_pruned_inputs_and_everything_is_2_of_4(family: str) -> None:
    model, ids, kept = tiny(family), tokens(), list[tuple[Tensor, Statistic]]()
    half = copy.deepcopy(model)
    parts = anatomy.dissect(model)
    outside = {
        name: p.clone() for name, p in model.named_parameters() if name.removesuffix(".weight") not in parts.linears
    }
    pruned = {n: w for block in walk(parts, ids, capture(kept, by_magnitude), Norms) for n, w in block.weights.items()}
    assert pruned.keys() == parts.linears.keys()
    for name, weight in pruned.items():
        assert pattern.first_violation(weight) is None and torch.equal(weight, parts.linears[name].weight)
    for name, parameter in model.named_parameters():
        if name in outside:
            assert torch.equal(parameter, outside[name]), name
    last = parts.blocks[-1].linears
    for name in parts.linears.keys() - last.keys():  # all blocks but the last, pruned by hand
        half.get_submodule(name).weight.copy_(magnitude(half.get_submodule(name).weight))
    inputs = watch(half, list(last), ids)
    for name in last:
        weight = half.get_submodule(name).weight
        (found,) = [s for w, s in kept if any(torch.equal(rows, weight[0]) for rows in w)]
        torch.testing.assert_close(found.squares, inputs[name].square().sum(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3", "mistral"])
def test_a_padded_batch_counts_real_tokens_only(family: str) -> None:
    model, ids, mask = tiny(family), tokens(3, 12), torch.ones(3, 12, dtype=torch.bool)
    mask[1, 8:] = mask[2, 5:] = False
    parts, kept = anatomy.dissect(model), list[tuple[Tensor, Statistic]]()
    list(walk(parts, ids, capture(kept, keep), Norms, mask=mask))
    assert {statistic.tokens for _, statistic in kept} == {12 + 8 + 5}
    inputs = watch(model, list(parts.linears), ids, mask)
    for name, linear in parts.linears.items():
        (found,) = [s for w, s in kept if any(torch.equal(rows, linear.weight[0]) for rows in w)]
        torch.testing.assert_close(found.squares, inputs[name].square().sum(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3", "mistral"])
def test_padding_changes_nothing(family: str) -> None:
    """The same text with and without four pad positions (of a token that means something) ends in the same weights."""
    solve: calibrate.Solve = lambda weight, h: sparsegpt(weight, h.matrix)  # type: ignore[attr-defined] # noqa: E731
    ids, real = tokens(3, 12), torch.ones(3, 12, dtype=torch.bool)
    padded, mask = nn.functional.pad(ids, (0, 4), value=7), nn.functional.pad(real, (0, 4))
    *_, plain = walk(anatomy.dissect(tiny(family)), ids, solve, Hessian)
    *_, found = walk(anatomy.dissect(tiny(family)), padded, solve, Hessian, mask=mask)
    *_, counted = walk(anatomy.dissect(tiny(family)), padded, solve, Hessian)
    for name, weight in plain.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=1e-3, atol=1e-4)
        assert found.linears[name].tokens == 36
        assert not torch.allclose(counted.weights[name], weight, rtol=1e-3, atol=1e-4)  # type: ignore[arg-type]


def test_linears_of_one_input_are_solved_as_one() -> None:
    shapes: list[tuple[int, int]] = []

    def note(weight: Tensor, statistic: Statistic) -> Tensor:
        shapes.append((weight.shape[0], weight.shape[1]))
        return magnitude(weight)

    list(walk(anatomy.dissect(tiny("llama", num_hidden_layers=1)), tokens(), note, Norms))
    assert shapes == [(32 + 16 + 16, 32), (32, 32), (48 + 48, 32), (32, 48)]  # q k v, o, gate up, down


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_that_of_the_stored_weight_against_the_dense(dtype: torch.dtype) -> None:
    model = tiny("llama").to(dtype)
    dense, ids = copy.deepcopy(model), tokens()
    solve: calibrate.Solve = lambda weight, h: sparsegpt(weight, h.matrix)  # type: ignore[attr-defined] # noqa: E731
    (first, *_) = walk(anatomy.dissect(model), ids, solve, Hessian)
    inputs = watch(dense, list(first.weights), ids)
    for name, weight in first.weights.items():
        assert weight.dtype == dtype
        x, before = inputs[name].double(), dense.get_submodule(name).weight.double()
        expected = (x @ (before - weight.double()).T).square().sum() / (x @ before.T).square().sum()
        assert first.linears[name].loss == pytest.approx(float(expected), rel=2e-3)
        assert first.linears[name].shape == tuple(weight.shape) and first.linears[name].tokens == 80


def test_weights_are_rounded_as_stored_where_forwards_run_wider() -> None:
    model = tiny("llama").bfloat16()
    parts = anatomy.dissect(model)
    model.float()
    for block in walk(parts, tokens(), lambda w, _: magnitude(w * 1.001), Norms):
        for name, weight in block.weights.items():
            assert weight.dtype == torch.bfloat16 and torch.equal(weight.float(), parts.linears[name].weight)


def test_int8_values_propagate_and_lose_as_they_are_stored() -> None:
    model = tiny("llama")
    dense, ids = copy.deepcopy(model), tokens()
    parts = anatomy.dissect(model)
    (first, *_) = walk(parts, ids, by_magnitude, Hessian, to_stored=lambda weight: to_int8(pack(weight)))
    inputs = watch(dense, list(first.weights), ids)
    for name, weight in first.weights.items():
        assert isinstance(weight, Packed) and weight.values.dtype == torch.int8
        stored = weight.unpack()
        assert torch.equal(stored, parts.linears[name].weight)
        x, before = inputs[name].double(), dense.get_submodule(name).weight.double()
        expected = (x @ (before - stored.double()).T).square().sum() / (x @ before.T).square().sum()
        assert first.linears[name].loss == pytest.approx(float(expected), rel=2e-3)


def test_the_model_works_again_after_a_walk_that_failed() -> None:
    model, ids = tiny("llama"), tokens()
    parts = anatomy.dissect(model)

    def fail(weight: Tensor, statistic: Statistic) -> Tensor:
        raise FactorError("no")

    with torch.no_grad():
        before = model(ids).logits
    with pytest.raises(FactorError, match=r"model\.layers\.0\.self_attn\.q_proj: no"):
        list(walk(parts, ids, fail, Norms))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    assert all(not module._forward_pre_hooks and "forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("sample", "position"), [(3, 9), (0, 2)])  # the second is seen by the trial, too
def test_a_bad_activation_is_named_with_layer_and_place(sample: int, position: int, bad: float) -> None:
    model, ids = tiny("llama"), tokens(5, 16).clamp(max=99)
    ids[sample, position] = 100
    model.model.embed_tokens.weight[100, 5] = bad
    place = f"sample {sample}, position {position};"
    with pytest.raises(NonFiniteError, match=rf"layers\.0\.self_attn\.q_proj is NaN or infinite at {place}"):
        list(walk(anatomy.dissect(model), ids, keep, Hessian))


def test_a_bad_output_that_no_linear_sees_is_named_with_block_and_place() -> None:
    model, ids = tiny("llama"), tokens(5, 16)
    model.model.layers[2].mlp.up_proj.weight.mul_(1e4)
    model.model.layers[2].mlp.down_proj.weight.fill_(3e38)  # overflows behind the last linear
    with pytest.raises(NonFiniteError, match=r"the output of the pruned block 2 is NaN or infinite at sample \d, posi"):
        list(walk(anatomy.dissect(model), ids, keep, Hessian))
    (batch,) = batches.record(anatomy.dissect(tiny("llama")), ids)
    batch.dense = batch.hidden.clone().index_fill_(1, torch.tensor(7), -float("inf"))
    with pytest.raises(
        NonFiniteError, match="the output of the dense block 4 is NaN or infinite at sample 0, position 7;"
    ):
        batches.require_finite(4, [batch])


def test_progress_names_every_block() -> None:
    steps: list[Step] = []
    list(walk(anatomy.dissect(tiny("llama")), tokens(), by_magnitude, Norms, progress=steps.append))
    assert [(step.done, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(step.detail.startswith("largest loss 0.") for step in steps)


def test_a_linear_that_sees_no_token_is_refused() -> None:
    model = tiny("llama")
    model.model.layers[1].mlp.spare = nn.Linear(32, 32)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.spare saw no token"):
        list(walk(anatomy.dissect(model), tokens(), keep, Norms))


class Echo(nn.Module):
    """A block that also looks at what the block before it kept aside."""

    def __init__(self, inner: nn.Module, shared: dict[str, Tensor]) -> None:
        super().__init__()
        self.inner, self.shared = inner, shared

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        previous = self.shared.get("hidden", hidden_states)
        self.shared["hidden"] = torch.randn_like(hidden_states)
        result: Tensor = self.inner(hidden_states, **kwargs) + previous
        return result


def test_blocks_that_talk_behind_the_walk_are_refused() -> None:
    model, shared = tiny("llama"), dict[str, Tensor]()
    for index in range(3):
        model.model.layers[index] = Echo(model.model.layers[index], shared)
    with pytest.raises(ModelError, match="do not simply follow each other"):
        list(walk(anatomy.dissect(model), tokens(), keep, Norms))


def test_pruning_without_text_measures_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    dense = copy.deepcopy(model)
    solve: Callable[[Tensor], Tensor] = magnitude
    for block in calibrate.prune_without_text(anatomy.dissect(model), solve):
        for name, weight in block.weights.items():
            before = dense.get_submodule(name).weight
            expected = (before - magnitude(before)).square().sum() / before.square().sum()
            assert torch.equal(weight, magnitude(before))
            assert block.linears[name].loss == pytest.approx(float(expected), rel=1e-5)
            assert block.linears[name].tokens == 0
