"""The choice within a run: the walked model is measured on text that it was not calibrated on, and a mixture chosen.

What is measured is kept in the journal: a run that goes on, and all mixtures of a frontier, choose by the same figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twofour.prune.config import PruneConfig
from twofour.prune.format.schemes import Scheme, expanded
from twofour.prune.format.weights import Weights
from twofour.prune.model.batches import follow_dense, record
from twofour.prune.policy import market as markets
from twofour.prune.policy import sensitivity
from twofour.prune.policy.curve import through
from twofour.prune.policy.market import Market, Mixture
from twofour.prune.policy.prices import Prices
from twofour.prune.policy.sensitivity import Sensitivity, Text
from twofour.prune.progress import Counter, Progress, counter
from twofour.prune.recovery.distil import whole_loss
from twofour.prune.recovery.training import STEP_TOKENS
from twofour.prune.run import footprint, mixture
from twofour.prune.run.mixture import Make
from twofour.prune.run.prepare import Prepared

SCHEMES: Mapping[str | None, tuple[Scheme, ...]] = {
    None: ("2:4", "2:4-int8", "dense", "dense-int8"),
    "model": ("2:4", "dense"),
    "int8": ("2:4-int8", "dense-int8"),
}


@dataclass(frozen=True)
class Choice:
    """A mixture for what was asked. share: of the dense cost. divergence: that is predicted, before training."""

    mixture: Mixture
    share: float
    divergence: float


class Judge:
    """The held-out text, and the model in memory, whose linears get one scheme or another to be judged."""

    def __init__(self, ready: Prepared, ids: Tensor, walked: Mapping[str, Make]) -> None:
        """Put the dense model in place, and keep what it makes of the text. walked: what makes the linears 2:4."""
        self._ready, self._walked = ready, walked
        anatomy = ready.anatomy
        anatomy.model.to(footprint.judging_device(anatomy, ready.config))
        self.put(dict.fromkeys(anatomy.linears, "dense"))
        with torch.no_grad():
            batches = record(anatomy, ids.to(anatomy.device), batch_tokens=STEP_TOKENS)
            for index, block in enumerate(anatomy.blocks):
                follow_dense(block, index, batches)
        self.text = Text(whole_loss(anatomy, ids, batches), len(batches))

    def put(self, schemes: Mapping[str, Scheme]) -> None:
        """Give the linears of the model in memory these schemes."""
        ready = self._ready
        makers = mixture.makers(schemes, self._walked, ready.source, ready.names, ready.anatomy.stored_dtype)
        mixture.put_in_place(ready.anatomy, makers)

    def divergence(self, step: Counter = lambda detail="": None) -> float:
        """Judge the model as it is in memory."""
        return sensitivity.divergence(self.text, step)

    def sensitivity(self, progress: Progress) -> Sensitivity:
        """Measure what each linear loses. The model is another afterwards."""
        ready = self._ready
        with Weights(ready.source, "dense") as weights:
            return sensitivity.measure(
                ready.anatomy.linears,
                self.text,
                lambda name: weights[f"{ready.names[name]}.weight"],
                lambda name: expanded(self._walked[name]()),
                self.put,
                progress,
            )


def refuse_impossible(ready: Prepared) -> None:
    """Raise InputError for a budget that no mixture meets, before any work."""
    config = ready.config
    nothing = Sensitivity(dict.fromkeys(ready.anatomy.linears, 0.0), 0.0)
    for budget in (config.budget, *config.frontier):
        if budget is not None:
            _market(ready, ready.prices, nothing).refuse(budget)


def measured(ready: Prepared, judge: Judge, progress: Progress) -> dict[str, Any]:
    """Measure what every linear loses, and what some mixtures do: plain data for JSON."""
    losses = judge.sensitivity(progress)
    found = {**losses.as_dict(), "prices": ready.prices, "points": []}
    ladder = market_of(ready, found).ladder()
    step = counter("measuring mixtures", len(ladder) * judge.text.parts, progress)
    for rung in ladder:
        judge.put(rung.schemes)
        found["points"].append((rung.loss, judge.divergence(step)))
    return found


def described(
    ready: Prepared, found: Mapping[str, Any], choice: Choice, budget: float | None, kl: float
) -> dict[str, Any]:
    """Return what the label says of a choice. kl: the divergence of the model as it is written."""
    config, kind = ready.config, ready.config.budget_for
    where = "bytes stored" if kind == "bytes" else f"{config.card}, estimated" if config.card else "timed here"
    return {
        "asked": {"max_kl": config.max_kl} if budget is None else {"budget": budget},
        "budget_for": kind,
        "cost": where,
        "share": choice.share,
        "predicted_kl": choice.divergence,
        "kl": kl,
        "samples": config.judged_samples,
        "sensitivity": {ready.names[name]: loss for name, loss in found["pruned"].items()},
        "int8_kl": found["rounded"],
        "prices": found["prices"],
        "measured": found["points"],
    }


def choice(ready: Prepared, found: Mapping[str, Any], budget: float | None) -> Choice:
    """Return the mixture for a budget, or without one for the divergence that is asked for."""
    market, curve = market_of(ready, found), through((total, divergence) for total, divergence in found["points"])
    if budget is not None:
        chosen = market.for_budget(budget)
    else:
        assert ready.config.max_kl is not None, "a run that chooses is asked for one or the other"
        chosen = market.for_divergence(ready.config.max_kl, curve)
    return Choice(chosen, chosen.cost / market.dense_cost, curve.divergence(chosen.loss))


def market_of(ready: Prepared, found: Mapping[str, Any]) -> Market:
    """Return what all linears cost and lose."""
    return _market(ready, found["prices"], Sensitivity(found["pruned"], found["rounded"]))


def _market(ready: Prepared, prices: Prices, losses: Sensitivity) -> Market:
    linears = ready.anatomy.linears.items()
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in linears}
    return markets.market(ready.groups, shapes, allowed(ready.config), prices, losses)


def allowed(config: PruneConfig) -> tuple[Scheme, ...]:
    """Return the schemes that linears may get."""
    return SCHEMES["model" if config.format == "dense" else config.values]
