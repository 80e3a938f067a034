"""What every group of linears costs and loses in every scheme, and what is best for a budget or a divergence.

Linears that are given one tensor are one group, with one scheme: other programs merge them into one product. So are the
experts of a layer, the first linears of all of them and the second: the text sees too little of a single one.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twofour.prune.errors import InputError
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme
from twofour.prune.policy import knapsack
from twofour.prune.policy.curve import Curve
from twofour.prune.policy.knapsack import Groups, Option
from twofour.prune.policy.prices import Prices, Shape, named
from twofour.prune.policy.sensitivity import Sensitivity

LADDER = (0.02, 0.12, 0.35, 0.65, 1.0)  # of the loss of the cheapest mixture: the mixtures that are measured
EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Mixture:
    """A scheme for each linear. cost: of all together, in the unit of the market. loss: the sum of theirs."""

    schemes: dict[str, Scheme]
    cost: int
    loss: float


@dataclass(frozen=True)
class Market:
    """options: of each group in each of the schemes. dense_cost: of all linears as in the dense model."""

    groups: Sequence[Sequence[str]]
    schemes: Sequence[Scheme]
    options: Groups
    dense_cost: int

    @property
    def least_share(self) -> float:
        """The share of the dense cost that the cheapest mixture has, rounded up: a budget that can be met."""
        return math.ceil(10**4 * sum(map(knapsack.cheapest, self.options)) / self.dense_cost) / 10**4

    def refuse(self, budget: float) -> None:
        """Raise InputError where no mixture is as cheap, where the dense model is, and where nothing would be 2:4."""
        limit = int(budget * self.dense_cost)
        if budget >= 1:
            raise InputError(f"budget is {budget:g}, and the dense model costs 1; give a number below that")
        if limit < sum(map(knapsack.cheapest, self.options)):
            raise InputError(
                f"budget is {budget:g}, and the cheapest mixture of {', '.join(self.schemes)} costs "
                f"{self.least_share} of the dense model; give that or more"
            )
        dense = [number for number, scheme in enumerate(self.schemes) if scheme not in TWO_OF_FOUR]
        cost = sum(min(options[number].cost for number in dense) for options in self.options)
        if cost <= limit:
            raise InputError(
                f"budget is {budget:g}, and all linears dense in int8 cost {cost / self.dense_cost:.4f} of what they "
                'do now: nothing would be 2:4; give less, or serve the dense model with "--dense-values int8"'
            )

    def for_budget(self, budget: float) -> Mixture:
        """Return the mixture that loses least for a share of the dense cost. Raises InputError as `refuse` does."""
        self.refuse(budget)
        return self._mixture(knapsack.least_loss(self.options, int(budget * self.dense_cost)))

    def for_divergence(self, divergence: float, curve: Curve) -> Mixture:
        """Return the cheapest mixture for which the curve gives at most this divergence.

        Raises InputError where none is that close to the dense model.
        """
        least = sum(min(option.loss for option in options) for options in self.options)
        if curve.divergence(least) > divergence:
            raise InputError(
                f"max_kl is {divergence:g}, and the closest mixture of {', '.join(self.schemes)} has "
                f"{curve.divergence(least):.4f}; give that or more, or allow values of the model's dtype"
            )
        found = self._mixture(knapsack.least_cost(self.options, curve.total(divergence)))
        if not set(TWO_OF_FOUR).intersection(found.schemes.values()):
            raise InputError(
                f"max_kl is {divergence:g}, and the cheapest mixture that is so close has nothing that is 2:4; give "
                'more, or serve the dense model with "--dense-values int8"'
            )
        return found

    def ladder(self) -> list[Mixture]:
        """Return mixtures from nearly dense to the cheapest, to be measured."""
        cheapest = self._mixture(knapsack.least_loss(self.options, sum(map(knapsack.cheapest, self.options))))
        losses = (share * cheapest.loss for share in LADDER[:-1])
        return [*(self._mixture(knapsack.least_cost(self.options, loss)) for loss in losses), cheapest]

    def _mixture(self, chosen: Sequence[int]) -> Mixture:
        schemes = {
            name: self.schemes[number] for group, number in zip(self.groups, chosen, strict=True) for name in group
        }
        cost, loss = knapsack.total(self.options, chosen)
        return Mixture(schemes, cost, loss)


def market(
    groups: Sequence[Sequence[str]],
    shapes: Mapping[str, Shape],
    schemes: Sequence[Scheme],
    prices: Prices,
    sensitivity: Sensitivity,
) -> Market:
    """Price every group in every scheme."""
    weights = {name: rows * columns for name, (rows, columns) in shapes.items()}
    losses = [sensitivity.losses(weights, scheme) for scheme in schemes]
    options = [
        [
            # A loss below 0 is noise, or what training would do anyway: no reason to pay, nor a gain to reckon with.
            Option(
                sum(prices[named(shapes[name])][scheme] for name in group), max(0.0, sum(lost[name] for name in group))
            )
            for scheme, lost in zip(schemes, losses, strict=True)
        ]
        for group in groups
    ]
    return Market(groups, schemes, options, sum(prices[named(shape)]["dense"] for shape in shapes.values()))


def merged(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Merge the groups of the experts of one layer that have the same place in their experts."""
    found = dict[tuple[str, ...], list[str]]()
    for group in groups:
        found.setdefault(tuple(EXPERT.sub(".experts.", name) for name in group), []).extend(group)
    return list(found.values())
