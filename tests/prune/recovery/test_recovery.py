"""Recovery of tiny models: block by block in the walk, then whole; never worse, always 2:4, nothing else touched."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from pruned_families import tiny, tokens
from torch import Tensor, nn

from twofour.prune.format import pattern
from twofour.prune.model import anatomy
from twofour.prune.model.anatomy import Block
from twofour.prune.model.batches import Batch, follow_dense, record
from twofour.prune.recovery import distil as distilling
from twofour.prune.recovery.blocks import block_loss, recover_block, relative_error
from twofour.prune.recovery.distil import distil, divergence
from twofour.prune.recovery.kept import KeptWeights
from twofour.prune.recovery.training import Outcome, Recovery, learn, step_tokens
from twofour.prune.run import calibrate
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.solving.statistics import Norms


def llama(dtype: torch.dtype = torch.float32) -> Any:
    return tiny("llama", initializer_range=0.2).to(dtype)


def walk(model: nn.Module, ids: Tensor, train: calibrate.Recover | None) -> list[calibrate.PrunedBlock]:
    return walked(model, ids, train)[0]


def walked(
    model: nn.Module, ids: Tensor, train: calibrate.Recover | None
) -> tuple[list[calibrate.PrunedBlock], list[Batch]]:
    parts = anatomy.dissect(model)
    batches = record(parts, ids, batch_tokens=32)
    return list(calibrate.walk(parts, batches, lambda w, _: magnitude(w), Norms, recover=train)), batches


def outputs(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What every block of the whole model returns."""
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    return list(states[1:-1])  # the last one is normed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recovered_blocks_are_nearer_to_the_dense_model(dtype: torch.dtype) -> None:
    dense, ids = llama(dtype), tokens(24)
    plain, trained = copy.deepcopy(dense), copy.deepcopy(dense)
    walk(plain, ids, None)
    blocks = walk(trained, ids, partial(recover_block, stored_dtype=dtype, passes=4, seed=0))
    wanted, before, after = (outputs(model, ids) for model in (dense, plain, trained))
    for goal, worse, better in zip(wanted, before, after, strict=True):
        assert relative_error(better, goal) < relative_error(worse, goal)
    parts = anatomy.dissect(trained)
    for block in blocks:
        assert block.recovered is not None and block.recovered.after < block.recovered.before
        for name, weight in block.weights.items():
            assert pattern.first_violation(weight) is None and torch.equal(weight, parts.linears[name].weight)
            assert torch.equal(weight != 0, magnitude(dense.get_submodule(name).weight) != 0)
    others = {name: p for name, p in dense.named_parameters() if name.removesuffix(".weight") not in parts.linears}
    for name, parameter in others.items():
        assert torch.equal(parameter, trained.get_parameter(name)), name


def test_a_block_is_trained_on_pruned_inputs_towards_the_dense_model() -> None:
    dense, ids, seen = llama(), tokens(6), dict[int, tuple[Tensor, Tensor]]()
    pruned = copy.deepcopy(dense)

    def note(block: Block, index: int, batches: list[Batch]) -> Outcome:
        assert all(batch.dense is not None for batch in batches)
        seen[index] = (torch.cat([b.hidden for b in batches]), torch.cat([b.dense for b in batches]))  # type: ignore[misc]
        return Outcome(1.0, 1.0, 0)

    walk(pruned, ids, note)
    for index in (1, 0):
        torch.testing.assert_close(seen[index][1], outputs(dense, ids)[index])
    torch.testing.assert_close(seen[1][0], outputs(pruned, ids)[0])


def test_the_next_block_sees_what_the_recovered_one_makes() -> None:
    dense, ids, seen = llama(), tokens(6), list[Tensor]()
    pruned = copy.deepcopy(dense)

    def double(block: Block, index: int, batches: list[Batch]) -> Outcome:
        seen.append(torch.cat([batch.hidden for batch in batches]))
        for linear in block.linears.values():
            linear.weight.mul_(2)
        return Outcome(1.0, 1.0, 0)

    walk(pruned, ids, double)
    torch.testing.assert_close(seen[1], outputs(pruned, ids)[0])


def distilled(passes: int, **options: Any) -> tuple[Any, Outcome]:
    model, ids = llama(), tokens(24)
    parts = anatomy.dissect(model)
    _, batches = walked(model, ids, partial(recover_block, stored_dtype=torch.float32, passes=0, seed=0))
    return model, distil(parts, ids, batches, passes, seed=0, **options)


def test_distillation_brings_the_predictions_nearer() -> None:
    dense, ids = llama(), tokens(24)
    start, none = distilled(0)
    pruned, outcome = distilled(4)
    held_out = ids[-2:]  # one of twelve steps of two samples

    def apart(model: nn.Module) -> float:
        with torch.no_grad():
            return float(divergence(model(held_out).logits, dense(held_out).logits))

    assert none == Outcome(none.before, none.before, 0) and none.before == pytest.approx(apart(start), rel=1e-4)
    assert outcome.before == none.before and outcome.after < outcome.before
    assert apart(pruned) == pytest.approx(outcome.after, rel=1e-4)
    parts, masks = anatomy.dissect(pruned), anatomy.dissect(start).linears
    for name, linear in parts.linears.items():
        assert torch.equal(linear.weight != 0, masks[name].weight != 0), name
    assert all(not p.requires_grad and p.grad is None for p in pruned.parameters())
    again, _ = distilled(4)
    assert all(torch.equal(p, q) for p, q in zip(pruned.parameters(), again.parameters(), strict=True))


def test_the_divergence_is_that_of_the_distributions_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    found, wanted = (torch.randn(2, 9, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = wanted.softmax(-1), found.softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    slope = (q - p) / 18
    for chunk in (1 << 26, 4 * 50 * 5):  # all at once; five tokens at a time, four tokens hold the rest
        monkeypatch.setattr(distilling, "CHUNK_BYTES", chunk)
        leaf = found.clone().requires_grad_()
        result = divergence(leaf, wanted)
        result.backward()
        assert leaf.grad is not None
        torch.testing.assert_close(result.detach().double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(leaf.grad, slope, rtol=1e-4, atol=1e-7)


def cosine(found: Tensor, wanted: Tensor) -> float:
    return float(nn.functional.cosine_similarity(found.double().flatten(), wanted.double().flatten(), dim=0))


def test_the_slope_of_float16_logits_is_that_of_float64() -> None:
    """Of 512 tokens of a vocabulary of 1000, where almost all of it is less than float16 can hold."""
    generator = torch.Generator().manual_seed(1)
    wanted = (4 * torch.randn(512, 1000, generator=generator)).half()
    found = (wanted + 0.05 * torch.randn(512, 1000, generator=generator)).half()
    slope = (found.double().softmax(-1) - wanted.double().softmax(-1)) / 512
    assert float((slope.half() == 0).double().mean()) > 0.9
    leaf = found.clone().requires_grad_()
    (divergence(leaf, wanted) * 2.0**16).backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.float16
    assert cosine(leaf.grad, slope) > 0.9999
    assert float((leaf.grad == 0).double().mean()) < 0.5


def gradients(dtype: torch.dtype, start: nn.Module, dense: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """Of the divergence of a pruned model from a dense one, by linear, as the optimiser is given them."""
    pruned, target = copy.deepcopy(start).to(dtype), copy.deepcopy(dense).to(dtype)
    parts = anatomy.dissect(pruned)
    kept = KeptWeights(parts.linears.values(), torch.float32, 0.001)
    with torch.no_grad():
        wanted = target(ids).logits
    learn(kept, lambda part: divergence(pruned(ids).logits, wanted), 0, 1.0)
    moments = kept.state()
    return {name: moments[f"first.{n}"] for n, name in enumerate(parts.linears)}


def test_float16_models_are_trained_along_the_slope_of_float32() -> None:
    """Whose predictions differ by little, as they do after some training, so their slopes are small."""
    dense, ids = tiny("llama", initializer_range=0.2, vocab_size=8192).to(torch.float16), tokens(24)
    start = copy.deepcopy(dense)
    walk(start, ids, None)
    for name, linear in anatomy.dissect(start).linears.items():
        dense.get_submodule(name).weight.copy_(linear.weight * 1.02)
    found, wanted = (gradients(dtype, start, dense, ids) for dtype in (torch.float16, torch.float32))
    cosines = {name: cosine(found[name], wanted[name]) for name in wanted}
    assert min(cosines.values()) > 0.998, cosines  # 0.990 without a scale


def test_tokens_that_the_dense_model_rules_out_cost_nothing() -> None:
    found, wanted = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    wanted[..., 5] = -float("inf")
    both = found.clone()
    both[..., 5] = -float("inf")
    p = wanted.double().softmax(-1)
    for logits in (found, both):
        leaf = logits.clone().requires_grad_()
        result = divergence(leaf, wanted)
        result.backward()
        terms = p * (wanted.double().log_softmax(-1) - logits.double().log_softmax(-1))
        assert float(result.detach()) == pytest.approx(float(torch.where(p > 0, terms, 0.0).sum(-1).mean()), rel=1e-5)
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), (logits.double().softmax(-1) - p) / 6, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])  # the latter of float16 logits that overflow
def test_a_dense_model_that_predicts_no_number_has_no_finite_loss(bad: float) -> None:
    found, wanted = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    wanted[1, 2, 5] = bad
    assert bool(divergence(found, wanted).isnan())


def test_the_loss_of_a_block_is_computed_where_the_block_is() -> None:
    parts, ids = anatomy.dissect(llama()), tokens(4)
    batches = record(parts, ids, batch_tokens=32)
    follow_dense(parts.blocks[0], 0, batches)
    parts.blocks[0].module.to("meta")  # as a GPU: another device than that of the states
    assert block_loss(parts.blocks[0], 0, batches)(0).device.type == "meta"
    assert batches[0].hidden.device.type == "cpu"


def test_every_token_counts_by_its_own_size() -> None:
    wanted = torch.tensor([[[1e4, 0.0], [0.0, 1.0]]])
    found = wanted * 1.5
    assert float(relative_error(found, wanted)) == pytest.approx(0.25)
    assert float(relative_error(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))) == 0


@pytest.mark.parametrize(("samples", "length", "expected"), [(64, 1024, 512), (2, 512, 512), (2, 32, 32), (3, 32, 48)])
def test_a_short_text_still_gives_two_steps(samples: int, length: int, expected: int) -> None:
    assert step_tokens(samples * length) == expected
    assert len(tokens(samples, length).split(max(1, expected // length))) >= 2


def test_the_outcome_reads_as_plain_data() -> None:
    recovery = Recovery([Outcome(0.2, 0.1, 4)], Outcome(1.0, 0.5, 2)).as_dict()
    assert recovery["blocks"] == [{"before": 0.2, "after": 0.1, "passes": 4, "tokens": None}]
    assert recovery["model"]["after"] == 0.5 and "KL" in recovery["model_loss"]
    assert Recovery([], None).as_dict()["model"] is None
