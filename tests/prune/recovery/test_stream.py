"""A stream: fresh text, every token once; what is held out is never trained on; a run that was cut off goes on."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from pruned_families import tiny
from torch import Tensor

from twofour.prune.errors import NonFiniteError, TextError
from twofour.prune.format import pattern
from twofour.prune.model import anatomy
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.progress import Step
from twofour.prune.recovery import stream as streams
from twofour.prune.recovery import training
from twofour.prune.recovery.dense import DenseWeights, states
from twofour.prune.recovery.distil import divergence
from twofour.prune.recovery.stream import SHARED, Length, distil_stream, runs
from twofour.prune.recovery.training import InMemory, Outcome, Training
from twofour.prune.solving.magnitude import magnitude

WINDOW = 16


def pair() -> tuple[Any, Anatomy, DenseWeights]:
    """A dense model, the same pruned, and its dense weights."""
    dense = tiny("llama", initializer_range=0.2)
    parts = anatomy.dissect(copy.deepcopy(dense))
    weights = {name: linear.weight.detach().clone() for name, linear in parts.linears.items()}
    for linear in parts.linears.values():
        linear.weight.copy_(magnitude(linear.weight))
    return dense, parts, DenseWeights(parts, weights)


def fresh(number: int, windows: int) -> Tensor:
    return torch.randint(1, 101, (windows, WINDOW), generator=torch.Generator().manual_seed(number))


def streamed(
    new_chunk: Callable[[int, int], Tensor] = fresh, tokens: int = 4096, **options: Any
) -> tuple[Anatomy, Outcome]:
    _, parts, dense = pair()
    length = Length(WINDOW, tokens=0 if "seconds" in options else tokens, seconds=options.pop("seconds", 0.0))
    return parts, distil_stream(parts, dense, new_chunk, length, **options)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHUNK_TOKENS", {"cpu": 1024})
    monkeypatch.setattr(streams, "STEP_TOKENS", 64)


def test_dense_weights_take_the_place_of_the_pruned_ones_for_a_while() -> None:
    dense, parts, weights = pair()
    before = {name: linear.weight.clone() for name, linear in parts.linears.items()}
    ids = fresh(0, 6)
    with pytest.raises(KeyError), weights.in_place():  # an error does not leave them there
        with torch.no_grad():
            assert torch.equal(parts.model(ids).logits, dense(ids).logits)  # type: ignore[operator]
            normed = parts.model.model.norm(states(parts, ids))  # type: ignore[union-attr, operator]
            assert torch.equal(normed, dense.model(ids).last_hidden_state)
        raise KeyError
    assert all(torch.equal(linear.weight, before[name]) for name, linear in parts.linears.items())


def test_what_a_stream_trains_predicts_what_the_dense_model_does() -> None:
    dense, start, _ = pair()
    parts, outcome = streamed(tokens=1 << 13)
    held_out = fresh(0, 8)
    with torch.no_grad():
        wanted = dense(held_out).logits
        apart = [float(divergence(each.model(held_out).logits, wanted)) for each in (start, parts)]  # type: ignore[operator]
    assert [outcome.before, outcome.after] == pytest.approx(apart, rel=1e-4) and apart[1] < 0.95 * apart[0]
    assert outcome.tokens == 1 << 13
    for name, linear in parts.linears.items():
        assert pattern.first_violation(linear.weight) is None
        assert torch.equal(linear.weight != 0, start.linears[name].weight != 0)


@pytest.mark.parametrize("options", [{"lean": True}, {"recompute": True}])
def test_little_memory_finds_the_same(options: dict[str, bool]) -> None:
    (parts, usual), (others, outcome) = streamed(), streamed(**options)
    assert outcome.before == usual.before
    same = [
        torch.equal(p.weight, q.weight) for p, q in zip(parts.linears.values(), others.linears.values(), strict=True)
    ]
    if "recompute" in options:
        assert all(same) and outcome == usual
    else:
        assert not any(same) and outcome.before - outcome.after == pytest.approx(usual.before - usual.after, rel=0.1)


def test_runs_of_tokens_are_the_same_where_their_tokens_are() -> None:
    ids = torch.randint(0, 2, (3, SHARED + 5), generator=torch.Generator().manual_seed(0))
    ids[1, 2 : 2 + SHARED] = ids[0, 3 : 3 + SHARED]
    found = runs(ids)
    for row, at in ((0, 0), (1, 2), (2, 5)):
        for other in range(3):
            for place in range(6):
                same = torch.equal(ids[row, at : at + SHARED], ids[other, place : place + SHARED])
                assert bool(found[row, at] == found[other, place]) == same
    assert found.shape == (3, 6) and runs(ids[:, :7]).shape == (3, 1)


def test_nothing_that_is_held_out_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Tensor]()
    real = streams.learn

    def watch(kept: Any, loss: Any, part: int, share: float) -> None:
        (text,) = (cell.cell_contents for cell in loss.__closure__ if isinstance(cell.cell_contents, streams.Text))
        seen.append(text.ids[part])
        real(kept, loss, part, share)

    monkeypatch.setattr(streams, "learn", watch)
    held_out = fresh(0, 4)

    def new_chunk(number: int, windows: int) -> Tensor:
        return held_out[:windows] if number == 0 else torch.cat([fresh(number, windows), held_out[:2]])

    _, outcome = streamed(new_chunk, tokens=2048)
    trained = torch.cat(seen)
    assert trained.numel() == outcome.tokens == 2048
    assert not any(bool((trained == window).all(1).any()) for window in held_out[:2])
    assert len(trained.unique(dim=0)) == len(trained)  # each once
    with pytest.raises(TextError, match="chunk 1 of the stream is nothing but text that is held out"):
        streamed(lambda number, windows: held_out[:2], tokens=2048)


def test_progress_says_how_far_how_quick_and_how_good() -> None:
    steps = list[Step]()
    _, outcome = streamed(tokens=2048, progress=steps.append)
    assert [step.done for step in steps] == [*range(64, 2048, 64), 2048]
    assert all("tokens/s, held-out loss" in step.detail for step in steps)
    assert steps[-1].detail.endswith(f"{outcome.after:.4f}") and steps[0].left_s is not None


class Clock:
    """Runs a second a look."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def test_a_time_ends_a_stream_and_the_rate_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, steps = list[float](), list[Step]()
    real = streams.learn
    monkeypatch.setattr(
        streams, "learn", lambda kept, loss, part, share: (shares.append(share), real(kept, loss, part, share))
    )
    _, outcome = streamed(seconds=100.0, clock=Clock(), progress=steps.append)
    assert shares[:8] == sorted(shares[:8]) and shares[8:] == sorted(shares[8:], reverse=True)
    assert max(shares) > 0.8 and shares[-1] < 0.01
    assert outcome.tokens == 64 * len(shares) and outcome.after < outcome.before
    assert [steps[-1].done, steps[-1].total] == [100, 100] and all(step.done < 100 for step in steps[:-1])


class Saves(InMemory):
    """A journal that keeps what was saved last, and cuts the run off after some saves."""

    def __init__(self, cut_off_after: int) -> None:
        self._left, self._saved = cut_off_after, None

    def restore_training(self) -> Training | None:  # type: ignore[override]
        return self._saved

    def save_training(self, training: Training) -> None:
        state = {name: tensor.clone() for name, tensor in (training.state or {}).items()}
        self._saved: Training | None = Training(**training.about(), state=state)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    def keep_best(self, values: Iterable[Tensor]) -> None:
        super().keep_best(each.clone() for each in values)


@pytest.mark.parametrize("lean", [False, True])
def test_a_stream_that_was_cut_off_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch, lean: bool) -> None:
    parts, outcome = streamed(lean=lean)
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 0)
    journal, made = Saves(21), list[int]()

    def new_chunk(number: int, windows: int) -> Tensor:
        made.append(number)
        return fresh(number, windows)

    with pytest.raises(KeyboardInterrupt):
        streamed(new_chunk, journal=journal, lean=lean)
    others, again = streamed(new_chunk, journal=journal, lean=lean)
    assert made == [0, 1, 2, 0, 2, 3, 4] and again == outcome  # 16 steps a chunk; the 21st was the last
    assert all(
        torch.equal(p.weight, q.weight) for p, q in zip(parts.linears.values(), others.linears.values(), strict=True)
    )


def test_a_chunk_without_a_finite_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = streams.text_loss

    def spoiled(parts: Anatomy, recompute: bool, text: Any) -> Any:
        loss = real(parts, recompute, text)
        return loss if len(text.ids) < 16 else lambda part: loss(part) * float("nan")

    monkeypatch.setattr(streams, "text_loss", spoiled)
    with pytest.raises(NonFiniteError, match="distilling a stream, chunk 1: no finite loss on part 0"):
        streamed()


def test_a_short_stream_holds_little_out() -> None:
    assert [Length(512, tokens=n).held_out for n in (512, 65536, 10**8)] == [1, 2, 8]
    assert Length(512, seconds=60.0).held_out == 8
    assert Length(512, tokens=600).chunk("cpu", 1) == 1
    assert [Length(16, seconds=60.0).chunk("cpu", number) for number in (1, 2, 3, 9, 99)] == [4, 8, 16, 64, 64]
    assert [Length(16, tokens=10**6).chunk("cpu", number) for number in (1, 99)] == [64, 64]
