"""Training kept weights: zeros stay, the best is kept, and Adam is Adam."""

import math
from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from twofour.prune.errors import NonFiniteError
from twofour.prune.format import pattern
from twofour.prune.format.rounding import as_int8
from twofour.prune.progress import Step
from twofour.prune.recovery.kept import KeptWeights
from twofour.prune.recovery.optimiser import BETAS
from twofour.prune.recovery.training import Training, learn, rate, split, train
from twofour.prune.solving.magnitude import magnitude


def pruned_linear(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    linear = nn.Linear(16, 8, bias=False).to(dtype).requires_grad_(False)
    linear.weight.copy_(magnitude(linear.weight))
    return linear


def regression(linear: nn.Linear, parts: int = 8, seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs, and what another linear of the same mask makes of them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(32, 16, generator=generator).to(linear.weight.dtype) for _ in range(parts)]
    goal = linear.weight * 1.3
    return inputs, [x @ goal.T for x in inputs]


def squared(linear: nn.Linear, inputs: list[Tensor], goals: list[Tensor]) -> object:
    return lambda part: (linear(inputs[part]) - goals[part]).float().square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_moves_kept_weights_only(dtype: torch.dtype) -> None:
    linear = pruned_linear(dtype)
    before, mask = linear.weight.clone(), linear.weight != 0
    inputs, goals = regression(linear)
    outcome = train(KeptWeights([linear], dtype, 0.02), squared(linear, inputs, goals), 8, 20, seed=0)  # type: ignore[arg-type]
    assert outcome.after < 0.2 * outcome.before
    assert not linear.weight[~mask].any() and pattern.first_violation(linear.weight) is None
    assert bool((linear.weight != before)[mask].any())
    assert not linear.weight.requires_grad and linear.weight.grad is None


def test_losses_are_those_of_rounded_weights() -> None:
    linear = pruned_linear()
    linear.weight.copy_(as_int8(linear.weight))
    mask = linear.weight != 0
    inputs, goals = regression(linear)
    loss = squared(linear, inputs, goals)
    outcome = train(KeptWeights([linear], torch.float32, 0.02, as_int8), loss, 8, 20, seed=0)  # type: ignore[arg-type]
    assert outcome.after < 0.2 * outcome.before and not linear.weight[~mask].any()
    assert torch.equal(linear.weight, as_int8(linear.weight))
    assert callable(loss) and float(loss(7)) == pytest.approx(outcome.after, rel=1e-6)


def test_a_step_is_adam_on_the_kept_weights_at_a_relative_rate() -> None:
    linear, other = pruned_linear(seed=0), pruned_linear(seed=3)
    other.weight.mul_(50)
    oracles = [nn.Parameter(each.weight.clone()) for each in (linear, other)]
    sizes = [float(each[each != 0].detach().square().mean().sqrt()) for each in oracles]
    masks = [each != 0 for each in oracles]
    adam = torch.optim.Adam([{"params": [o], "lr": 0.01 * s} for o, s in zip(oracles, sizes, strict=True)], betas=BETAS)
    kept, x = KeptWeights([linear, other], torch.float32, 0.01), torch.randn(4, 16)
    for share in (1.0, 0.5, 0.25):
        for group, size in zip(adam.param_groups, sizes, strict=True):
            group["lr"] = 0.01 * size * share
        with kept.training():
            kept.step((linear(x) + other(x)).square().sum(), share)
        adam.zero_grad()
        (x @ (oracles[0] * masks[0]).T + x @ (oracles[1] * masks[1]).T).square().sum().backward()
        adam.step()
    for each, oracle, mask in zip((linear, other), oracles, masks, strict=True):
        torch.testing.assert_close(each.weight, oracle.detach() * mask)


def test_small_steps_add_up_below_the_precision_of_the_stored_weights() -> None:
    linear = pruned_linear(torch.bfloat16)
    before = linear.weight.clone()
    kept = KeptWeights([linear], torch.bfloat16, 1e-4)  # a step is lost in bfloat16, forty are not
    for _ in range(40):
        with kept.training():
            kept.step(linear(torch.ones(1, 16, dtype=torch.bfloat16)).sum(), 1.0)
    mask = before != 0
    assert float((linear.weight != before)[mask].double().mean()) > 0.3
    assert bool((linear.weight <= before)[mask].all())


def test_weights_are_rounded_as_they_will_be_stored() -> None:
    linear = pruned_linear()
    linear.weight.copy_(linear.weight.bfloat16())
    inputs, goals = regression(linear)
    train(KeptWeights([linear], torch.bfloat16, 0.02), squared(linear, inputs, goals), 8, 2, seed=0)  # type: ignore[arg-type]
    assert torch.equal(linear.weight, linear.weight.bfloat16().float())


def test_what_got_no_better_stays_as_it_was() -> None:
    linear = pruned_linear()
    before = linear.weight.clone()
    inputs, goals = regression(linear)
    for part in split(8)[1]:
        goals[part] = inputs[part] @ linear.weight.T  # the start is perfect on what validates
    outcome = train(KeptWeights([linear], torch.float32, 0.02), squared(linear, inputs, goals), 8, 9, seed=0)  # type: ignore[arg-type]
    assert torch.equal(linear.weight, before)
    assert outcome.after == outcome.before < 1e-12 and outcome.passes == 2  # patience


def test_the_best_pass_is_kept_not_the_last() -> None:
    linear = pruned_linear()
    inputs, goals = regression(linear)
    losses, loss = list[float](), squared(linear, inputs, goals)
    assert callable(loss)

    def watched(part: int) -> Tensor:
        value: Tensor = loss(part)
        if part in split(8)[1]:
            losses.append(float(value.detach()))
        return value

    outcome = train(KeptWeights([linear], torch.float32, 0.5), watched, 8, 6, seed=0)  # far too fast
    assert outcome.before == losses[0] and outcome.after == min(losses)
    assert float(loss(7)) == pytest.approx(min(losses)) and len(losses) == outcome.passes + 1


def test_a_part_without_a_finite_loss_is_refused() -> None:
    linear = pruned_linear()
    inputs, goals = regression(linear)
    goals[2] = goals[2] * float("nan")
    with pytest.raises(NonFiniteError, match="training block 7: no finite loss on part 2 of the text"):
        train(KeptWeights([linear], torch.float32, 0.01), squared(linear, inputs, goals), 8, 3, 0, "training block 7")  # type: ignore[arg-type]


def test_what_has_had_no_gradient_yet_has_a_state_all_the_same() -> None:
    linear, expert = pruned_linear(), pruned_linear(seed=3)
    kept, again = (KeptWeights([linear, expert], torch.float32, 0.01) for _ in range(2))
    x = torch.randn(4, 16)
    learn(kept, lambda part: linear(x).square().sum(), 0, 1.0)
    state = {name: value.clone() for name, value in kept.state().items()}
    assert float(state["steps.0"]) == 1 and float(state["steps.1"]) == 0 and not state["second.1"].any()
    after = []
    for each in (kept, again):
        each.restore({name: value.clone() for name, value in state.items()})
        learn(each, lambda part: (linear(x) + expert(x)).square().sum(), 0, 1.0)
        after.append((linear.weight.clone(), expert.weight.clone()))
    assert all(torch.equal(*pair) for pair in zip(*after, strict=True))


def test_a_start_without_a_finite_loss_is_refused() -> None:
    linear = pruned_linear()
    inputs, goals = regression(linear)
    goals[7] = goals[7] * float("inf")
    with pytest.raises(NonFiniteError, match="held-out text"):
        train(KeptWeights([linear], torch.float32, 0.01), squared(linear, inputs, goals), 8, 3, seed=0)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    results = []
    for seed in (0, 0, 1):
        linear = pruned_linear()
        inputs, goals = regression(linear)
        train(KeptWeights([linear], torch.float32, 0.02), squared(linear, inputs, goals), 8, 2, seed)  # type: ignore[arg-type]
        results.append(linear.weight.clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_linear_without_a_kept_weight_is_no_obstacle() -> None:
    linear, empty = pruned_linear(), pruned_linear()
    empty.weight.zero_()
    inputs, goals = regression(linear)
    loss = lambda part: (linear(inputs[part]) + empty(inputs[part]) - goals[part]).square().mean()  # noqa: E731
    assert train(KeptWeights([linear, empty], torch.float32, 0.02), loss, 8, 3, seed=0).after > 0
    assert not empty.weight.any()


def test_progress_counts_steps_over_all_passes() -> None:
    linear, steps = pruned_linear(), list[Step]()
    inputs, goals = regression(linear)
    train(KeptWeights([linear], torch.float32, 0.01), squared(linear, inputs, goals), 8, 2, 0, "training", steps.append)  # type: ignore[arg-type]
    assert [(step.done, step.total) for step in steps] == [(n, 14) for n in range(1, 15)]


@pytest.mark.parametrize(("parts", "held_out"), [(2, 1), (16, 1), (31, 1), (32, 2), (256, 16)])
def test_a_sixteenth_at_the_end_validates(parts: int, held_out: int) -> None:
    training, validating = split(parts)
    assert list(training) + list(validating) == list(range(parts)) and len(validating) == held_out


def test_the_rate_rises_over_a_few_steps_and_falls_with_half_a_cosine() -> None:
    assert [rate(done, 0.0) for done in (0, 3, 7, 8)] == pytest.approx([1 / 8, 1 / 2, 1, 1])
    assert [rate(400, share) for share in (0.25, 0.5, 1.0)] == pytest.approx([(1 + math.sqrt(0.5)) / 2, 0.5, 0])


class Saves:
    """A journal of which every save takes `save_s` of a clock that runs a second a look."""

    def __init__(self, save_s: float) -> None:
        self.now_s, self._save_s = 0.0, save_s
        self.began: list[float] = []

    def clock(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def restore_training(self) -> None:
        return None

    def keep_best(self, values: Iterable[Tensor]) -> None:
        self._best = list(values)

    def best(self) -> list[Tensor]:
        return self._best

    def save_training(self, training: Training) -> None:
        self.began.append(self.now_s)
        self.now_s += self._save_s


@pytest.mark.parametrize(("save_s", "pause_s"), [(2.0, 120.0), (50.0, 510.0)])
def test_saving_takes_a_tenth_of_the_time_at_most(save_s: float, pause_s: float) -> None:
    linear = pruned_linear()
    inputs, goals = regression(linear)
    saves, loss = Saves(save_s), squared(linear, inputs, goals)
    kept = KeptWeights([linear], torch.float32, 1e-4)
    train(kept, loss, 8, 300, 0, journal=saves, clock=saves.clock)  # type: ignore[arg-type]
    pauses = [after - before - save_s - 1 for before, after in pairwise(saves.began)]
    assert saves.began[0] == 121.0 and len(pauses) >= 2
    assert pauses == [pause_s] * len(pauses)


def test_float16_gradients_are_those_of_float32() -> None:
    """Of a loss so small that its own gradients would be 0 in float16."""
    steps = {}
    for dtype in (torch.float16, torch.float32):
        linear = pruned_linear(torch.float16).to(dtype)
        before = linear.weight.clone().float()
        kept = KeptWeights([linear], torch.float32, 0.01)
        for seed in range(3):
            x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)
            learn(kept, lambda part, x=x, linear=linear: linear(x).float().square().mean() * 1e-8, 0, 1.0)  # type: ignore[misc]
        steps[dtype] = kept.state()["first.0"]
        assert bool((linear.weight.float() != before).any())
    torch.testing.assert_close(*steps.values(), rtol=0.01, atol=1e-12)


def test_a_scale_that_is_too_large_is_halved_and_the_step_made_again() -> None:
    linear, looks = pruned_linear(torch.float16), 0
    kept = KeptWeights([linear], torch.float16, 0.01)
    before, mask = linear.weight.clone(), linear.weight != 0

    def loss(part: int) -> Tensor:
        nonlocal looks
        looks += 1
        return linear(torch.full((1, 16), 16.0, dtype=torch.float16)).float().sum()  # a gradient of 16 everywhere

    learn(kept, loss, 0, 1.0)
    assert looks == 6  # 2^16, 2^15 ... 2^11: 2^15 is the largest power of two in float16
    assert bool((linear.weight < before)[mask].all()) and float(kept.state()["scale"]) == 2.0**11
    again = KeptWeights([pruned_linear(torch.float16)], torch.float16, 0.01)
    again.restore(kept.state())
    assert float(again.state()["scale"]) == 2.0**11


def test_gradients_that_no_scale_makes_finite_are_refused() -> None:
    linear = pruned_linear(torch.float16)
    before = linear.weight.clone()
    kept = KeptWeights([linear], torch.float16, 0.01)

    def loss(part: int) -> Tensor:
        value: Tensor = linear(torch.ones(1, 16, dtype=torch.float16)).float().sum()
        return value - value.detach() + (value - value.detach()).abs().sqrt()  # 0, and its slope is infinite

    with pytest.raises(NonFiniteError, match="no finite gradient on part 3 of the text"):
        learn(kept, loss, 3, 1.0)
    assert torch.equal(linear.weight, before)
