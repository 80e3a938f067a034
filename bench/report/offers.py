"""The arms of a comparison as offers: what each loses, and what it costs in bytes, in speed and in dollars."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from twofour.bench.report.scatter import Axis, Place, on_front, scatter
from twofour.prune.errors import InputError

Document = Mapping[str, Any]
COSTS = ("bytes", "speed", "dollars")
LOSSES = {"kl": "KL to {first}, nats per token", "perplexity_ratio": "perplexity over that of {first}, less 1"}


@dataclass(frozen=True)
class Picture:
    """Loss against one cost. title: of the picture; loss: what is written at the axis of losses."""

    title: str
    axis: Axis
    loss: str
    places: list[Place]

    @property
    def front(self) -> list[str]:
        return on_front(self.places, self.axis)

    def draw(self, about: str) -> Markup:
        """Raises InputError where there is nothing to draw."""
        if len(self.places) < 2:
            raise InputError("fewer than two arms have both a loss and this cost; give bench compare --quality")
        return scatter(self.title, about, self.places, self.axis, self.loss)


def fronts(document: Document) -> dict[str, list[str]]:
    """By cost, the arms that no other beats in cost and loss together; none where there is nobody to beat."""
    return {cost: picture.front if len(picture.places) > 1 else [] for cost, picture in pictures(document).items()}


def pictures(document: Document) -> dict[str, Picture]:
    """By cost. An arm without a loss, or without that cost, is in none."""
    measure = loss_measure(document)
    named = LOSSES[measure].format(first=next(iter(document["arms"])))
    return {
        cost: Picture(title, axis, named, _places(document, values, measure))
        for cost, (title, axis, values) in _costs(document).items()
    }


def loss_measure(document: Document) -> str:
    """KL, where all losses that were measured have it."""
    measured = [loss for loss in document["quality"].values() if loss]
    return "kl" if all(loss["kl"] is not None for loss in measured) else "perplexity_ratio"


def about(document: Document) -> str:
    """What a picture was made of."""
    text = (document["quality_of"] or {}).get("text")
    judged = f"; quality on {text}" if text else ""
    return f"{document['load']['summary']}; on {document['hardware']['summary']}{judged}."


def _costs(document: Document) -> dict[str, tuple[str, Axis, dict[str, float | None]]]:
    first = next(iter(document["arms"]))
    share = {arm: each["ratio"] for arm, each in document["bytes"]["linear_bytes"].items()}
    speed = {arm: each["value"] for arm, each in document["metrics"]["output_tokens_per_s"]["arms"].items()}
    dollars, unit = _dollars(document, first)
    return {
        "bytes": ("Loss against bytes", Axis(f"bytes of the linears, those of {first} being 1"), share),
        "speed": ("Loss against speed", Axis("output tokens per second", rising=True), speed),
        "dollars": ("Loss against cost", Axis(unit), dollars),
    }


def _dollars(document: Document, first: str) -> tuple[dict[str, float | None], str]:
    """Of a million tokens; over those of the first where there is no price, for that ratio needs none."""
    figures = (document["cost"] or {}).get("blended", {})
    if document["price"]:
        return {arm: each["value"] for arm, each in figures.items()}, "$ per million tokens"
    ratios = {arm: each["ratio"]["point"] if each["ratio"] else None for arm, each in figures.items()}
    return ({first: 1.0} | {arm: ratio for arm, ratio in ratios.items() if arm != first}) if figures else {}, (
        f"cost per token, that of {first} being 1"
    )


def _places(document: Document, costs: Mapping[str, float | None], measure: str) -> list[Place]:
    places = list[Place]()
    for name, arm in document["arms"].items():
        loss, cost = document["quality"][name], costs.get(name)
        if loss and loss[measure] is not None and cost is not None:
            lost = loss[measure] - (1 if measure == "perplexity_ratio" else 0)
            places.append(Place(name, cost, lost, arm["kind"]))
    return places
