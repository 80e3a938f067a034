"""Losses on the way from dense to pruned: small ones add up, and each is the slope that differences give."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pruned_families import tiny, tokens
from torch import Tensor, nn

from twofour.prune.errors import NonFiniteError
from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.prune.format.schemes import Scheme
from twofour.prune.model.anatomy import Anatomy, dissect
from twofour.prune.model.batches import logits
from twofour.prune.policy import sensitivity
from twofour.prune.policy.sensitivity import Text, divergence, measure, on_the_way
from twofour.prune.progress import Step, silent
from twofour.prune.recovery import distil
from twofour.prune.solving.magnitude import magnitude

PARTS = 3


class Subject:
    """A tiny model, its dense and its pruned weights, and a text."""

    def __init__(self, family: str = "llama", dtype: torch.dtype = torch.float32) -> None:
        model: Any = tiny(family, initializer_range=0.2).to(dtype)
        self.anatomy: Anatomy = dissect(model.requires_grad_(False))
        self.dense = {name: linear.weight.clone() for name, linear in self.anatomy.linears.items()}
        self.pruned = {name: magnitude(weight.float()).to(dtype) for name, weight in self.dense.items()}
        ids = tokens(2 * PARTS).split(2)
        with torch.no_grad():
            wanted = [logits(model, some) for some in ids]
        self.text = Text(lambda part: distil.divergence(logits(model, ids[part]), wanted[part]), PARTS)

    @property
    def linears(self) -> dict[str, nn.Linear]:
        return self.anatomy.linears

    def way(self) -> dict[str, float]:
        return on_the_way(
            self.linears, self.text, self.dense.__getitem__, self.pruned.__getitem__, lambda detail="": None
        )

    def put(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.linears[name].weight.copy_(weight)

    def put_schemes(self, schemes: Mapping[str, Scheme]) -> None:
        assert set(schemes.values()) == {"dense-int8"}
        self.put({name: to_dense_int8(self.dense[name], name).unpack() for name in schemes})


@pytest.mark.parametrize("family", ["llama", "phi", "gemma3"])
def test_losses_of_small_changes_add_up_to_the_divergence(family: str) -> None:
    subject = Subject(family)
    subject.pruned = {name: torch.lerp(subject.dense[name], far, 0.1) for name, far in subject.pruned.items()}
    losses = subject.way()
    subject.put(subject.pruned)
    assert losses.keys() == subject.dense.keys()
    assert sum(losses.values()) == pytest.approx(divergence(subject.text), rel=0.1)


def test_a_loss_is_the_slope_that_differences_give() -> None:
    subject = Subject()
    losses, (name, *_) = subject.way(), [name for name in subject.dense if name.endswith("down_proj")]
    here = {key: torch.lerp(subject.dense[key], subject.pruned[key], sensitivity.PLACE) for key in subject.dense}
    moved = 1e-2 * (subject.pruned[name] - subject.dense[name])
    ends = []
    for sign in (1, -1):
        subject.put({**here, name: here[name] + sign * moved})
        ends.append(divergence(subject.text))
    assert losses[name] == pytest.approx((ends[0] - ends[1]) / 2e-2 / (2 * sensitivity.PLACE), rel=0.02)


def test_what_is_not_pruned_loses_nothing_and_gradients_are_gone() -> None:
    subject = Subject()
    kept = next(iter(subject.dense))
    subject.pruned[kept] = subject.dense[kept]
    assert abs(subject.way()[kept]) < 1e-6
    assert all(not p.requires_grad and p.grad is None for p in subject.anatomy.model.parameters())


def test_float16_finds_the_same() -> None:
    exact, found = Subject().way(), Subject(dtype=torch.float16).way()
    assert sum(found.values()) == pytest.approx(sum(exact.values()), rel=0.05)
    assert all(abs(found[name] - exact[name]) < 0.05 * sum(exact.values()) for name in exact)


def test_rounding_is_measured_once_and_shared_by_weights() -> None:
    subject, steps = Subject(), list[Step]()
    dense, pruned = subject.dense.__getitem__, subject.pruned.__getitem__
    found = measure(subject.linears, subject.text, dense, pruned, subject.put_schemes, steps.append)
    subject.put_schemes(dict.fromkeys(subject.dense, "dense-int8"))
    assert found.rounded == pytest.approx(divergence(subject.text), rel=1e-5) and found.rounded > 0
    weights = {name: weight.numel() for name, weight in subject.dense.items()}
    by = {scheme: found.losses(weights, scheme) for scheme in ("2:4", "2:4-int8", "dense", "dense-int8")}  # type: ignore[arg-type]
    assert not any(by["dense"].values()) and by["2:4"] == dict(found.pruned)
    assert sum(by["dense-int8"].values()) == pytest.approx(found.rounded)
    for name in weights:
        assert by["2:4-int8"][name] == pytest.approx(by["2:4"][name] + by["dense-int8"][name])
    assert steps[-1].done == steps[-1].total == 2 * PARTS


def test_a_divergence_that_is_not_finite_is_named() -> None:
    subject = Subject()
    subject.pruned[next(iter(subject.pruned))].fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="part 0 of the held-out text"):
        measure(
            subject.linears,
            subject.text,
            subject.dense.__getitem__,
            subject.pruned.__getitem__,
            subject.put_schemes,
            silent,
        )
